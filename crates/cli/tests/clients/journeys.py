"""Runs journeys one after another, all of them whatever became of the others, and exits with whether any failed."""

import sys
import time


def run(journeys):
    failed = 0
    for journey in journeys:
        started = time.monotonic()
        try:
            journey()
            print(f"{journey.__name__}: ok ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception as error:  # noqa: BLE001 - the next journey is tried
            failed += 1
            print(f"{journey.__name__}: FAILED: {type(error).__name__}: {error}")
    print(f"test result: {'FAILED' if failed else 'ok'}. {len(journeys) - failed} passed; {failed} failed; journeys")
    sys.exit(bool(failed))
