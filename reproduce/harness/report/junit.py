"""The verdicts as JUnit XML, for CI pages: a test suite for each table, one for checkpoints and one for claims."""

from collections.abc import Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from reproduce.harness.report.render_claims import doubts_in_words
from reproduce.harness.report.rendering import xml_text
from reproduce.harness.spec import claims
from reproduce.harness.verdict.check import TableVerdict
from reproduce.harness.verdict.checkpoints import CheckpointVerdict
from reproduce.harness.verdict.claims import ClaimVerdict
from reproduce.harness.verdict.labels import AGREEING, DISAGREEING, ClaimStatus, Verdict


def as_junit(
    checked: Sequence[TableVerdict],
    claim_verdicts: Sequence[ClaimVerdict] = (),
    claims_requested: bool = False,
    checkpoints: Sequence[CheckpointVerdict] = (),
) -> str:
    """Return the verdicts as test cases."""
    root = Element("testsuites", name="reproduce")
    for table in checked:
        _add_table(root, table)
    if checkpoints:
        _add_checkpoints(root, checkpoints)
    if claim_verdicts:
        _add_claims(root, claim_verdicts, claims_requested)
    for suite in root:
        for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(count, str(len(suite.findall(f".//{tag}"))))
    for element in root.iter():
        for key, value in element.items():
            element.set(key, xml_text(value))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_table(root: Element, checked: TableVerdict) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=checked.table.table)
    for row, key, cell in checked.cells():
        case = ElementTree.SubElement(suite, "testcase", classname=checked.table.table, name=f"{row.label} / {key}")
        _add_outcome(case, cell.verdict, cell.reason, cell.needed and cell.verdict != Verdict.NO_BASELINE)
    if checked.doubts:
        ElementTree.SubElement(suite, "system-out").text = xml_text("\n".join(checked.doubts))


def _add_checkpoints(root: Element, checkpoints: Sequence[CheckpointVerdict]) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name="checkpoints")
    for each in checkpoints:
        case = ElementTree.SubElement(suite, "testcase", classname="checkpoints", name=each.checkpoint.name)
        _add_outcome(case, each.verdict, each.reason, required=True)


def _add_outcome(case: Element, verdict: Verdict, reason: str, required: bool) -> None:
    """Mark a case that does not agree. One without a verdict is an error if it is `required`."""
    if verdict in AGREEING:
        return
    kind = "failure" if verdict in DISAGREEING else "error" if required else "skipped"
    ElementTree.SubElement(case, kind, message=f"{verdict}: {reason}")


def _add_claims(root: Element, verdicts: Sequence[ClaimVerdict], requested: bool) -> None:
    """Add a test case for each claim. A claim without all of its runs is an error only if claims were requested."""
    suite = ElementTree.SubElement(root, "testsuite", name=claims.TARGET)
    for verdict in verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname=claims.TARGET, name=verdict.claim.claim)
        if verdict.status == ClaimStatus.HOLDS:
            continue
        kind = "error" if requested and verdict.incomplete else "skipped"
        kind = "failure" if verdict.status in (ClaimStatus.CONTRADICTED, ClaimStatus.CHANGED) else kind
        reasons = " ".join(part.reason for part in verdict.parts if part.status == verdict.status)
        ElementTree.SubElement(case, kind, message=f"{verdict.status}: {reasons}")
    if doubted := doubts_in_words((each.claim.claim, each.doubts) for each in verdicts):
        ElementTree.SubElement(suite, "system-out").text = xml_text("\n".join(doubted))
