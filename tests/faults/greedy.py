"""What a bounded process may be asked in tests."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from export.bounded import answer


def _answer(request: dict[str, Any]) -> Any:
    match request["do"]:
        case "echo":
            print("not an answer")
            return request["what"]
        case "memory":
            return len(bytearray(2**33))
        case "time":
            while True:
                pass
        case "death":
            os.kill(os.getpid(), signal.SIGABRT)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "disk":
            raise OSError(28, "No space left on device", "/somewhere")
        case "wait":
            file = Path(request["file"])
            try:
                file.touch()
                time.sleep(600)
            finally:
                file.unlink()
        case "bug":
            return {}["x"]
    return None


if __name__ == "__main__":
    answer(_answer)
