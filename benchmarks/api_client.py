"""pyxnat or xnatpy on one session, in a process of its own; prints {"seconds": after the login, "files": how many}.

python benchmarks/api_client.py pyxnat|xnatpy list|download URL PROJECT SUBJECT EXPERIMENT INTO

``list`` names every file of every scan. ``download`` writes every file, one after the other. Both use the
library as its documentation does; user and password come from XNAT_USER and XNAT_PASS.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")


def pyxnat_session(url: str, project: str, subject: str, experiment: str) -> Any:
    import pyxnat

    interface = pyxnat.Interface(server=url, user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"])
    return interface.select.project(project).subject(subject).experiment(experiment)


def pyxnat_files(session: Any) -> Any:
    for scan in session.scans():
        for resource in scan.resources():
            yield from resource.files()


def work_pyxnat(job: str, session: Any, into: Path) -> int:
    count = 0
    if job == "list":
        for scan in session.scans():
            for resource in scan.resources():
                count += len(resource.files().get())
        return count
    for file in pyxnat_files(session):
        file.get(str(into / f"{count}"))
        count += 1
    return count


def work_xnatpy(job: str, session: Any, into: Path) -> int:
    count = 0
    for scan in session.scans.values():
        for resource in scan.resources.values():
            for file in resource.files.values():
                if job == "list":
                    file.path  # noqa: B018 (a property)
                else:
                    file.download(str(into / f"{count}"), verbose=False)
                count += 1
    return count


def main() -> None:
    client, job, url, project, subject, experiment, into = sys.argv[1:]
    if client == "pyxnat":
        session = pyxnat_session(url, project, subject, experiment)
        start = time.perf_counter()
        count = work_pyxnat(job, session, Path(into))
        took = time.perf_counter() - start
    else:
        import xnat

        with xnat.connect(
            url, user=os.environ["XNAT_USER"], password=os.environ["XNAT_PASS"], loglevel="ERROR"
        ) as connection:
            start = time.perf_counter()
            chosen = connection.projects[project].subjects[subject].experiments[experiment]
            count = work_xnatpy(job, chosen, Path(into))
            took = time.perf_counter() - start
    print(json.dumps({"seconds": took, "files": count}))


if __name__ == "__main__":
    main()
