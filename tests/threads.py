"""Many threads at once, switched as often as Python can, so that what they share without a lock is seen torn."""

import sys
import threading


def together(count, work):
    """Runs work(0) to work(count - 1), a thread each, from one moment on; gives what they return, in order.

    Raises:
        BaseException: what the first of them raised.
    """
    results, errors, start, interval = [None] * count, [], threading.Barrier(count), sys.getswitchinterval()

    def run(number):
        start.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
    return results
