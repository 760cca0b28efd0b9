"""The server's description of its data types: a small XML schema of our own.

Enough for clients that build classes from it (xnatpy). Type and field names are XNAT's data model.
"""

from __future__ import annotations

_STRING = "xs:string"

# type: (base, attributes, elements) where an element is name or (name, type, many)
_TYPES: dict[str, tuple[str, tuple[str, ...], tuple[tuple[str, str, bool], ...]]] = {
    "investigatorData": ("", (), (("firstname", _STRING, False), ("lastname", _STRING, False))),
    "projectParticipant": ("", ("project", "label"), ()),
    "abstractResource": ("", ("label", "file_count", "file_size"), (("note", _STRING, False),)),
    "resource": ("abstractResource", ("URI", "format", "description", "content"), ()),
    "resourceCatalog": ("resource", (), ()),
    "resourceSeries": ("abstractResource", ("path", "pattern"), ()),
    "projectData": (
        "",
        ("ID", "secondary_ID"),
        (
            ("name", _STRING, False),
            ("description", _STRING, False),
            ("keywords", _STRING, False),
            ("PI", "xnat:investigatorData", False),
            ("resources", "list:resource:xnat:abstractResource", False),
        ),
    ),
    "abstractDemographicData": ("", (), ()),
    "demographicData": (
        "abstractDemographicData",
        (),
        tuple((name, _STRING, False) for name in ("gender", "yob", "handedness", "age")),
    ),
    "subjectData": (
        "",
        ("ID", "project", "group", "label"),
        (
            ("sharing", "list:share:xnat:projectParticipant", False),
            ("resources", "list:resource:xnat:abstractResource", False),
            ("demographics", "xnat:abstractDemographicData", False),
            ("experiments", "list:experiment:xnat:experimentData", False),
        ),
    ),
    "experimentData": (
        "",
        ("ID", "project", "label"),
        (
            ("sharing", "list:share:xnat:projectParticipant", False),
            ("date", "xs:date", False),
            ("note", _STRING, False),
            ("resources", "list:resource:xnat:abstractResource", False),
        ),
    ),
    "subjectAssessorData": ("experimentData", (), (("subject_ID", _STRING, False), ("age", _STRING, False))),
    "subjectVariablesData": (
        "subjectAssessorData",
        (),
        tuple((name, _STRING, False) for name in ("total", "memory", "attention", "language")),
    ),
    "imageScanData": (
        "",
        ("ID", "type", "UID"),
        (
            ("image_session_ID", _STRING, False),
            ("note", _STRING, False),
            ("quality", _STRING, False),
            ("series_description", _STRING, False),
            ("frames", _STRING, False),
            ("file", "xnat:abstractResource", True),
        ),
    ),
    "mrScanData": ("imageScanData", (), ()),
    "ctScanData": ("imageScanData", (), ()),
    "petScanData": ("imageScanData", (), ()),
    "reconstructedImageData": ("", ("ID", "type"), (("baseScanType", _STRING, False),)),
    "derivedData": ("experimentData", (), (("imageSession_ID", _STRING, False),)),
    "imageAssessorData": ("derivedData", (), ()),
    "mrAssessorData": ("imageAssessorData", (), ()),
    "qcAssessmentData": ("imageAssessorData", (), ()),
    "qcManualAssessorData": ("imageAssessorData", (), ()),
    "imageSessionData": (
        "subjectAssessorData",
        ("modality", "UID"),
        (
            ("scans", "list:scan:xnat:imageScanData", False),
            ("reconstructions", "list:reconstructedImage:xnat:reconstructedImageData", False),
            ("assessors", "list:assessor:xnat:imageAssessorData", False),
            ("dcmPatientId", _STRING, False),
        ),
    ),
    "mrSessionData": ("imageSessionData", (), ()),
    "ctSessionData": ("imageSessionData", (), ()),
    "petSessionData": ("imageSessionData", (), ()),
}
_LABELLED = {"projectData": "ID", "subjectData": "label", "experimentData": "label", "abstractResource": "label"}

XDAT = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<xs:schema targetNamespace="http://nrg.wustl.edu/security" xmlns:xdat="http://nrg.wustl.edu/security" '
    'xmlns:xs="http://www.w3.org/2001/XMLSchema" elementFormDefault="qualified">\n'
    '<xs:complexType name="user"><xs:sequence><xs:element name="login" type="xs:string"/></xs:sequence>'
    "</xs:complexType>\n"
    "</xs:schema>\n"
)


def schema(name: str) -> str | None:
    """The schema document called ``name``, or None."""
    return {"xnat": _xnat_schema, "xdat": lambda: XDAT}.get(name, lambda: None)()


def _xnat_schema() -> str:
    tops = "".join(f'<xs:element name="{name}" type="xnat:{name}"/>\n' for name in _TYPES)
    types = "".join(_complex_type(name) for name in _TYPES)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<xs:schema targetNamespace="http://nrg.wustl.edu/xnat" xmlns:xnat="http://nrg.wustl.edu/xnat" '
        'xmlns:xdat="http://nrg.wustl.edu/xdat" xmlns:xs="http://www.w3.org/2001/XMLSchema" '
        f'elementFormDefault="qualified">\n{tops}{types}</xs:schema>\n'
    )


def _complex_type(name: str) -> str:
    base, attributes, elements = _TYPES[name]
    note = ""
    if name in _LABELLED:
        note = f'<xdat:element displayIdentifiers="{_LABELLED[name]}"/>'
        note = f"<xs:annotation><xs:appinfo>{note}</xs:appinfo></xs:annotation>"
    inner = "<xs:sequence>" + "".join(_element(*element) for element in elements) + "</xs:sequence>"
    inner += "".join(f'<xs:attribute name="{a}" type="xs:string"/>' for a in attributes)
    if base:
        inner = f'<xs:complexContent><xs:extension base="xnat:{base}">{inner}</xs:extension></xs:complexContent>'
    return f'<xs:complexType name="{name}">{note}{inner}</xs:complexType>\n'


def _element(name: str, type_: str, many: bool) -> str:
    if type_.startswith("list:"):
        _, item, item_type = type_.split(":", 2)
        inner = f'<xs:element name="{item}" type="{item_type}" minOccurs="0" maxOccurs="unbounded"/>'
        return (
            f'<xs:element name="{name}" minOccurs="0"><xs:complexType><xs:sequence>{inner}</xs:sequence>'
            "</xs:complexType></xs:element>"
        )
    most = "unbounded" if many else "1"
    return f'<xs:element name="{name}" type="{type_}" minOccurs="0" maxOccurs="{most}"/>'
