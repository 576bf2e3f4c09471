from tests.export.conftest import evidence_of, exported, photos

__all__ = ["evidence_of", "exported", "photos"]
