"""What several tests do with threads."""
import threading


def in_threads(n, work):
    """work(0) to work(n - 1) at once. What one of them raises is raised here."""
    errors = []

    def guarded(i):
        try:
            work(i)
        except BaseException as e:
            errors.append(e)
    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(50)
        assert not t.is_alive()
    if errors:
        raise errors[0]
