"""Tells people what they should know, where they look anyway: in a chat, or by a program of theirs.

No error quotes the URL or the command: there are secrets in them.
"""

import json
import shlex
import subprocess
import urllib.error
import urllib.request

POST_SECONDS, COMMAND_SECONDS = 10.0, 60.0


def post(url: str, text: str) -> str | None:
    """POST `{"text": ...}`, the form that chat tools take. Returns what went wrong."""
    body = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - as configured
    try:
        with urllib.request.urlopen(request, timeout=POST_SECONDS):  # noqa: S310 - the settings take http alone
            return None
    except urllib.error.HTTPError as error:
        return f"[notify] url answers HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"[notify] url can't be reached ({getattr(reason, 'strerror', None) or type(reason).__name__})"


def run_program(command: str, text: str) -> str | None:
    """Run a program with the text on its stdin. Returns what went wrong."""
    try:
        done = subprocess.run(  # noqa: S603 - what the settings name
            shlex.split(command),
            input=f"{text}\n",
            text=True,
            capture_output=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"[notify] command took more than {COMMAND_SECONDS:g} s"
    except OSError as error:
        return f"[notify] command can't be started ({error.strerror})"
    return f"[notify] command ended with {done.returncode}" if done.returncode else None
