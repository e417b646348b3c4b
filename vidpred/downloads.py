"""Is there a network? Asked cheaply before a download is tried, so that nobody waits for retries without one."""

import threading
import urllib.error
import urllib.request


def reachable(url: str, seconds: float = 4.0) -> bool:
    """True when the server of `url` answers a HEAD request, with whatever status, within `seconds`.

    Proxies of the environment are used. The request runs in a thread of its own because looking up a host
    name without a network can block far longer than any socket timeout.
    """
    finished, answers = threading.Event(), []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answers.append(url)
        except urllib.error.HTTPError:
            answers.append(url)  # a refusal is an answer too
        except (OSError, ValueError):  # URLError and timeouts are OSErrors; a malformed proxy is a ValueError
            pass
        finally:
            finished.set()

    threading.Thread(target=ask, daemon=True).start()
    finished.wait(seconds)
    return bool(answers)
