"""The pages of a report: the summary picture, every finding, and what made them. They name no patient."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from xml.sax.saxutils import escape

from PIL import Image
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Image as Picture
from reportlab.platypus import LongTable, Paragraph, SimpleDocTemplate, Spacer

from meddaemon import __version__
from meddaemon.results.drawing import Row, plain, rows_of, status_of, summary
from meddaemon.results.identity import RESEARCH_MARK
from meddaemon.results.request import EncodingRequest

MOST_ROWS = 1000
_LONGEST_CELL = 2000
"""Characters: a line of a table that is higher than a page cannot be set."""
_MARGIN = 15 * mm
_TEXT = ParagraphStyle("text", fontName="Helvetica", fontSize=9, leading=12)
_HEADING = ParagraphStyle("heading", parent=_TEXT, fontName="Helvetica-Bold", fontSize=15, leading=19)
_WARNING = ParagraphStyle("warning", parent=_TEXT, fontName="Helvetica-Bold", textColor=colors.HexColor("#B00000"))


def paper(request: EncodingRequest) -> bytes:
    """Return the report as a PDF, byte for byte the same for the same result."""
    buffer = BytesIO()
    contract = request.contract
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN + 6 * mm,
        title=plain(f"{contract.title} - {RESEARCH_MARK}"),
        author="meddaemon",
        invariant=1,
    )
    width = A4[0] - 2 * _MARGIN
    pixels = summary(request, table=False)
    picture = BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    story = [
        Paragraph(_safe(contract.title), _HEADING),
        Paragraph(f"{RESEARCH_MARK}. Computed by software, not reviewed by a physician.", _WARNING),
        *([Paragraph(_safe(status), _WARNING)] if (status := status_of(request)) else []),
        Spacer(0, 3 * mm),
        Picture(picture, width=width, height=width * pixels.shape[0] / pixels.shape[1]),
        Spacer(0, 4 * mm),
        _findings(_rows(request), width),
        Spacer(0, 4 * mm),
        _table([("Made by", ""), *_made_by(request)], (0.35 * width, 0.65 * width)),
    ]
    document.build(story, onFirstPage=_mark, onLaterPages=_mark)
    return buffer.getvalue()


def _rows(request: EncodingRequest) -> list[Row]:
    rows = rows_of(request) or [Row(None, "Nothing was found", "")]
    left_out = len(rows) - MOST_ROWS
    return rows if left_out <= 0 else [*rows[:MOST_ROWS], Row(None, f"and {left_out} more findings", "")]


def _made_by(request: EncodingRequest) -> Iterator[tuple[str, str]]:
    contract = request.contract
    yield "Model", f"{contract.name} {contract.version}"
    yield "Manufacturer", contract.manufacturer or "not named"
    yield "Model sha256", contract.digest
    if contract.weights_digest:
        yield "Weights sha256", contract.weights_digest
    yield "Software", f"meddaemon {__version__}"
    yield "Images", str(sum(len(series.instances) for series in request.source.inputs))


def _findings(rows: Sequence[Row], width: float) -> LongTable:
    """Return the table of findings, each with the colour in which it is drawn."""
    lines = [("", "Finding", "Measurements"), *(("", row.name, row.numbers) for row in rows)]
    table = _table(lines, (12, 0.3 * width, 0.7 * width - 12))
    table.setStyle(
        [
            ("BACKGROUND", (0, number), (0, number), colors.Color(*(each / 255 for each in row.colour)))
            for number, row in enumerate(rows, 1)
            if row.colour
        ]
    )
    return table


def _table(rows: Sequence[tuple[str, ...]], widths: Sequence[float]) -> LongTable:
    cells = [[Paragraph(_safe(cell[:_LONGEST_CELL]), _TEXT) if cell else "" for cell in row] for row in rows]
    return LongTable(
        cells,
        colWidths=list(widths),
        repeatRows=1,
        style=[
            ("GRID", (0, 0), (-1, -1), 0.4, colors.lightgrey),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ],
    )


def _safe(text: str) -> str:
    """Return text that a paragraph shows as it is: no mark-up, and nothing that its font lacks."""
    return escape(plain(text))


def _mark(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.saveState()
    canvas.setFont("Helvetica-Bold", 9)
    canvas.setFillColor(colors.HexColor("#B00000"))
    canvas.drawString(_MARGIN, _MARGIN - 4 * mm, RESEARCH_MARK)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN - 4 * mm, f"page {document.page}")
    canvas.restoreState()
