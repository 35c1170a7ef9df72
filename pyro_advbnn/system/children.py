"""Commands in processes of their own, several at once; whatever ends this process stops them first."""
import os
import subprocess
import sys
import time

_SECONDS_BETWEEN_LOOKS = 0.1


class Children:
    """Commands `python WORDS` at work, each for a task of the caller's, on num_threads threads and with a file for its words.

    with Children(2) as children: those that are at work at its end are asked to stop by SIGTERM, and awaited; a signal
    meanwhile kills them. Ctrl-C reaches this process alone: each has a process group of its own.
    """

    def __init__(self, num_threads):
        self.num_threads, self._at_work = num_threads, []

    @property
    def tasks(self):
        """Those that are at work."""
        return [task for task, *_ in self._at_work]

    def start(self, task, words, log):
        """Begin `python WORDS`, whose output is added to the file `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            process = subprocess.Popen([sys.executable, *words], stdin=subprocess.DEVNULL, stdout=file,
                                       stderr=subprocess.STDOUT, process_group=0,
                                       env=os.environ | {"OMP_NUM_THREADS": str(self.num_threads)})
        self._at_work.append((task, process, time.monotonic()))

    def wait_for_one(self):
        """(task, exit code, seconds) of the first that has ended; below 0 the code is that of a signal."""
        while True:
            for child in self._at_work:
                task, process, began = child
                if process.poll() is not None:
                    self._at_work.remove(child)
                    return task, process.returncode, time.monotonic() - began
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        processes = [process for _, process, _ in self._at_work]
        if processes:
            print(f"stopping {len(processes)} more after their step; Ctrl-C again stops at once", flush=True)
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
                process.wait()
            raise
