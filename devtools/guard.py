"""Runs Python code that ends with the process that started it: `guard.py PARENT_PID SCRIPT | -m MODULE ARGUMENTS...`.

However a demo or a test run dies, no ComfyUI survives it, nor a pip that would write into a new `.venv`.
Standard library only.
"""

import os
import runpy
import sys
import threading
import time


def end_with(parent: int) -> None:
    """Wait until the parent process is gone, then leave at once."""
    if sys.platform == "win32":
        import _winapi

        synchronize = 0x00100000
        _winapi.WaitForSingleObject(_winapi.OpenProcess(synchronize, False, parent), _winapi.INFINITE)
    else:
        while os.getppid() == parent:  # an orphan is handed to another process
            time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    del sys.argv[:2]
    if sys.argv[0] == "-m":
        del sys.path[0], sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")
