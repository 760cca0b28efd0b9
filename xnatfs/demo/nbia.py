"""An NBIA server, as far as reading goes: listings, a series as a zip made while it is sent, single images, tokens.

v4 refuses query parameters that it does not know; v1 ignores them. An empty result is an empty body. Pure but for its
tokens; safe from any thread.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qs

from xnatfs.demo.api import Question
from xnatfs.demo.contents import BytesContent
from xnatfs.demo.replies import Reply, plain
from xnatfs.demo.sending import Body, Piece
from xnatfs.demo.tcia_sample import LICENSE_NAME, LICENSE_URL, MTIME_S, Image, SampleSeries
from xnatfs.demo.zips import Member, zip_stream

PREFIX = "/nbia-api/"
SERVICES = f"{PREFIX}services/"
USER, PASSWORD = "demo", "demo"  # of a demonstration
TOKEN_LIFE_S = 7200
STAMP = "2024-01-01 10:00:00.0"

_SERIES_KEYS = frozenset(
    {
        *("Collection", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
        *("BodyPartExamined", "Manufacturer", "ManufacturerModelName", "format"),
    }
)

Row = dict[str, object]


class Nbia:
    """The handlers of one server.

    Args:
        has_v4: Asked at each request.
    """

    def __init__(self, series: Callable[[], tuple[SampleSeries, ...]], has_v4: Callable[[], bool]) -> None:
        self._series = series
        self._has_v4 = has_v4
        self._tokens: set[str] = set()

    def answer(self, question: Question) -> tuple[Reply, str]:
        """The reply, and the user it was for: "" for a guest."""
        if question.path == f"{PREFIX}oauth/token":
            return self._token(question), ""
        user = self._user(question)
        if user is None:
            return plain('{"error": "invalid_token"}', "application/json", 401), ""
        version, _, call = question.path.removeprefix(SERVICES).partition("/")
        handlers = self._v4 if version == "v4" and self._has_v4() else self._v1 if version in ("v1", "v2") else {}
        if call not in handlers:
            return plain("not found", status=404), user
        handler, keys, method = handlers[call]
        if question.method not in (method, "HEAD"):
            return plain("method not allowed", status=405), user
        unknown = set(question.query) - keys
        if version == "v4" and unknown:
            return plain(f"Invalid query parameter: '{min(unknown)}'.", status=400), user
        return handler(question, [one for one in self._series() if user or not one.limited]), user

    def _user(self, question: Question) -> str | None:
        """ "" for a guest, None for somebody with a token that is none."""
        header = question.headers.get("Authorization", "")
        if not header:
            return ""
        return USER if header.removeprefix("Bearer ") in self._tokens else None

    def _token(self, question: Question) -> Reply:
        form = {name: values[0] for name, values in parse_qs(question.body.decode()).items()}
        if (form.get("username"), form.get("password"), form.get("grant_type")) != (USER, PASSWORD, "password"):
            return plain('{"error": "invalid_grant"}', "application/json", 401)
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        document = {"access_token": token, "token_type": "bearer", "expires_in": TOKEN_LIFE_S}
        return plain(json.dumps(document), "application/json")

    _Handler = Callable[[Question, list[SampleSeries]], Reply]

    @property
    def _v1(self) -> dict[str, tuple[_Handler, frozenset[str], str]]:
        return {
            "getCollectionValues": (_collections, frozenset({"format"}), "GET"),
            "getPatientStudy": (_studies, frozenset({"Collection", "PatientID", "StudyInstanceUID", "format"}), "GET"),
            "getSeries": (_list_series, _SERIES_KEYS, "GET"),
            "getSOPInstanceUIDs": (_instances, frozenset({"SeriesInstanceUID", "format"}), "GET"),
            "getSingleImage": (_single_image, frozenset({"SeriesInstanceUID", "SOPInstanceUID"}), "GET"),
            "getImage": (_image, frozenset({"SeriesInstanceUID", "NewFileNames"}), "GET"),
            "getSeriesMetaData": (_metadata_v1, frozenset({"SeriesInstanceUID", "format"}), "GET"),
        }

    @property
    def _v4(self) -> dict[str, tuple[_Handler, frozenset[str], str]]:
        v4 = {name: handler for name, handler in self._v1.items() if name != "getSeriesMetaData"}
        image = frozenset({"SeriesInstanceUID", "NewFileNames", "IncludeMD5"})
        return {**v4, "getImage": (_image, image, "GET"), "getSeriesMetadata": (_metadata, frozenset(), "POST")}


# --- listings ---------------------------------------------------------------------------------------------------------


def _rows(rows: Iterable[Row]) -> Reply:
    """JSON with nulls left out; nothing at all where there is no row."""
    shown = [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]
    return plain(json.dumps(shown) if shown else "", "application/json")


def _collections(question: Question, series: list[SampleSeries]) -> Reply:
    return _rows({"Collection": name} for name in sorted({one.study.collection for one in series}))


def _studies(question: Question, series: list[SampleSeries]) -> Reply:
    studies = dict.fromkeys(one.study for one in _chosen(question, series))
    return _rows(
        {
            "StudyInstanceUID": study.uid,
            "StudyDate": f"{study.date} 00:00:00.0" if study.date else None,
            "StudyDescription": study.description,
            "StudyID": study.id,
            "PatientID": study.patient,
            "Collection": study.collection,
            "SeriesCount": sum(one.study == study for one in series),
        }
        for study in studies
    )


def _list_series(question: Question, series: list[SampleSeries]) -> Reply:
    return _rows(_series_row(one) for one in _chosen(question, series))


def _series_row(one: SampleSeries) -> Row:
    return {
        "SeriesInstanceUID": one.uid,
        "StudyInstanceUID": one.study.uid,
        "Modality": one.modality,
        "SeriesDescription": one.description,
        "SeriesNumber": one.number,
        "Collection": one.study.collection,
        "PatientID": one.study.patient,
        "Manufacturer": one.manufacturer,
        "ImageCount": len(one.images),
        "MaxSubmissionTimestamp": STAMP,
        "LicenseName": LICENSE_NAME,
        "LicenseURI": LICENSE_URL,
        "FileSize": one.size,
        "DateReleased": "2024-01-02 00:00:00.0",
    }


def _chosen(question: Question, series: list[SampleSeries]) -> list[SampleSeries]:
    def fits(one: SampleSeries) -> bool:
        known = {
            "Collection": one.study.collection,
            "PatientID": one.study.patient,
            "StudyInstanceUID": one.study.uid,
            "SeriesInstanceUID": one.uid,
            "Modality": one.modality,
        }
        return all(known[name] == value for name, value in question.query.items() if name in known)

    return [one for one in series if fits(one)]


def _metadata(question: Question, series: list[SampleSeries]) -> Reply:
    """v4, by POST: every series named in ``list``, as CSV."""
    wanted = set(",".join(parse_qs(question.body.decode()).get("list", [])).split(","))
    if wanted == {""}:
        return plain("A form parameter, list, is required.", status=400)
    text = io.StringIO()
    rows = [_metadata_row(one) for one in series if one.uid in wanted]
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return plain(text.getvalue(), "text/csv")


def _metadata_row(one: SampleSeries) -> Row:
    return {
        "Patient ID": one.study.patient,
        "Study Instance UID": one.study.uid,
        "Study Date": f"{one.study.date} 00:00:00.0" if one.study.date else "",
        "Study Description": one.study.description,
        "Study ID": one.study.id,
        "Series Instance UID": one.uid,
        "Project": one.study.collection,
        "Modality": one.modality,
        "Series Description": one.description,
        "Series Number": "" if one.number is None else one.number,
        "Manufacturer": one.manufacturer,
        "Image Count": len(one.images),
        "Max Submission Timestamp": STAMP,
        "License Name": LICENSE_NAME,
        "License URI": LICENSE_URL,
        "Collection URI": "https://doi.org/10.1000/demo",
        "File Size": one.size,
        "Authorized": 1,
    }


def _metadata_v1(question: Question, series: list[SampleSeries]) -> Reply:
    found = _chosen(question, series)
    if not found:
        return Reply(204)
    return _rows(
        {
            "Series UID": one.uid,
            "Collection": one.study.collection,
            "Subject ID": one.study.patient,
            "Study UID": one.study.uid,
            "Study Date": f"{one.study.date[5:]}-{one.study.date[:4]}" if one.study.date else None,
            "Study Description": one.study.description,
            "Series Description": one.description,
            "Modality": one.modality,
            "Number of Images": str(len(one.images)),
            "File Size": str(one.size),
            "File Location": one.study.id,  # the column really carries this
            "Series Number": None if one.number is None else f"{one.number:.6f}",
            "License Name": LICENSE_NAME,
            "License URL": LICENSE_URL,
        }
        for one in found
    )


def _instances(question: Question, series: list[SampleSeries]) -> Reply:
    found = _chosen(question, series) if "SeriesInstanceUID" in question.query else []
    return _rows({"SOPInstanceUID": image.sop} for one in found for image in one.images)


# --- images -----------------------------------------------------------------------------------------------------------


def _single_image(question: Question, series: list[SampleSeries]) -> Reply:
    wanted = question.query.get("SOPInstanceUID")
    for one in _chosen(question, series):
        for image in one.images:
            if image.sop == wanted:
                body = Body(image.content.size, image.content.pieces)
                return Reply(200, {"Content-Type": "application/dicom"}, body)
    return plain("Server was not able to process your request", status=500)


def _image(question: Question, series: list[SampleSeries]) -> Reply:
    """The zip of a series: nothing in front of it tells its length, nothing in front of a member its size."""
    found = _chosen(question, series) if "SeriesInstanceUID" in question.query else []
    if not found:
        return plain("The user has not been granted the access to image with given SeriesInstanceUID.", status=400)
    images = list(found[0].images)
    new_names = question.query.get("NewFileNames", "").lower() == "yes"
    with_md5 = question.query.get("IncludeMD5", "").lower() == "yes"

    def body(images: list[Image], wrong: bool = False) -> Body:
        return Body(None, lambda start, stop: _zip(images, new_names, with_md5, wrong))

    reply = Reply(200, {"Content-Type": "application/octet-stream"}, body(images))
    reply.variants = {
        "missing_member": lambda: body(images[:-1]),  # gone from the server's disk: the zip ends there, in good order
        "wrong_md5": lambda: body(images, wrong=True),
    }
    return reply


def _zip(images: list[Image], new_names: bool, with_md5: bool, wrong: bool) -> Iterator[Piece]:
    license_ = BytesContent(f"{LICENSE_NAME}\n{LICENSE_URL}\n".encode())
    entries: list[Member] = [("LICENSE", license_, MTIME_S)]
    names = [image.name if new_names else f"{number:08}.dcm" for number, image in enumerate(images, 1)]
    entries += [(name, image.content, MTIME_S) for name, image in zip(names, images, strict=True)]
    if with_md5:
        lines = [f"{name},{image.content.md5()}\n" for name, image in zip(names, images, strict=True)]
        if wrong:
            lines[-1] = f"{names[-1]},{'0' * 32}\n"
        entries.append(("md5hashes.csv", BytesContent("".join(["Filename,MD5Hash\n", *lines]).encode()), MTIME_S))
    return zip_stream(entries, deflate=True)
