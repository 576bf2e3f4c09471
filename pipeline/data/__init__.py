"""The photos: read, split, decoded, looked over, fetched or drawn."""
