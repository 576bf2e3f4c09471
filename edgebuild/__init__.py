"""The launcher of edgebuild; everything else lives in models/, latency/, export/ and pipeline/."""
