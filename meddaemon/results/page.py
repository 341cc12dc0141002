"""The pages of a report: the summary picture, every finding, and what made them. They name no patient."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from xml.sax.saxutils import escape

from PIL import Image
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Image as Picture
from reportlab.platypus import LongTable, Paragraph, SimpleDocTemplate, Spacer

from meddaemon import __version__
from meddaemon.results.drawing import Row, rows_of, status_of, summary
from meddaemon.results.identity import RESEARCH_MARK
from meddaemon.results.letters import fonts, line_of, runs
from meddaemon.results.request import EncodingRequest

MOST_ROWS = 1000
_LONGEST_CELL = 2000
"""Characters: a line of a table that is higher than a page cannot be set."""
_MARGIN = 15 * mm
_TEXT = ParagraphStyle("text", fontName="Vera", fontSize=8.5, leading=12)
_HEADING = ParagraphStyle("heading", parent=_TEXT, fontName="VeraBd", fontSize=14, leading=19)
_WARNING = ParagraphStyle("warning", parent=_TEXT, fontName="VeraBd", textColor=colors.HexColor("#B00000"))


def paper(request: EncodingRequest) -> bytes:
    """Return the report as a PDF, byte for byte the same for the same result."""
    _register_fonts()
    buffer = BytesIO()
    contract = request.contract
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=_MARGIN,
        bottomMargin=_MARGIN + 6 * mm,
        title=line_of(f"{contract.title} - {RESEARCH_MARK}"),
        author="meddaemon",
        invariant=1,
        initialFontName="Vera",
    )
    width = A4[0] - 2 * _MARGIN
    pixels = summary(request, table=False)
    picture = BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    story = [
        _paragraph(contract.title, _HEADING),
        _paragraph(f"{RESEARCH_MARK}. Computed by software, not reviewed by a physician.", _WARNING),
        *([_paragraph(status, _WARNING)] if (status := status_of(request)) else []),
        Spacer(0, 3 * mm),
        Picture(picture, width=width, height=width * pixels.shape[0] / pixels.shape[1]),
        Spacer(0, 4 * mm),
        _findings(_rows(request), width),
        Spacer(0, 4 * mm),
        _table([("Made by", ""), *_made_by(request)], (0.25 * width, 0.75 * width)),
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
    cells = [[_paragraph(cell[:_LONGEST_CELL], _TEXT) if cell else "" for cell in row] for row in rows]
    return LongTable(
        cells,
        colWidths=list(widths),
        repeatRows=1,
        style=[
            ("FONTNAME", (0, 0), (-1, -1), "Vera"),
            ("GRID", (0, 0), (-1, -1), 0.4, colors.lightgrey),
            ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ],
    )


def _paragraph(text: str, style: ParagraphStyle) -> Paragraph:
    """Return text as it is: no mark-up, each character in a font that has it.

    reportlab writes from left to right only, so that what is written the other way is shown by its numbers.
    """
    pieces = runs(line_of(text), both_ways=False)
    plain = fonts()[0]
    marked = [
        escape(text) if font == plain else f'<font name="{font.name}">{escape(text)}</font>' for text, font in pieces
    ]
    # Scripts of the others have no spaces at which a line could end.
    between = all(font.name in (plain.name, "DejaVuSans") for _, font in pieces)
    return Paragraph("".join(marked), style if between else ParagraphStyle("dense", parent=style, wordWrap="CJK"))


def _register_fonts() -> None:
    for font in fonts():
        pdfmetrics.registerFont(TTFont(font.name, str(font.path)))
    pdfmetrics.registerFont(TTFont("VeraBd", str(fonts()[0].path.with_name("VeraBd.ttf"))))


def _mark(canvas: Canvas, document: SimpleDocTemplate) -> None:
    canvas.saveState()
    canvas.setFont("VeraBd", 9)
    canvas.setFillColor(colors.HexColor("#B00000"))
    canvas.drawString(_MARGIN, _MARGIN - 4 * mm, RESEARCH_MARK)
    canvas.drawRightString(A4[0] - _MARGIN, _MARGIN - 4 * mm, f"page {document.page}")
    canvas.restoreState()
