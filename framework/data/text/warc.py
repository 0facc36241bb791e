"""Pages of WARC files as text: HTML responses, decoded as they say or look, without menus and other boilerplate.

The archives of the web and what is in them: FastWARC and Resiliparse (Bevendorff et al. 2018, 2021), whose extraction
DCLM compared with others (Li et al. 2024, 2406.11794, section 4.2) and chose.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator

from framework.data.readers import Row, open_data
from framework.data.remote import DataFile
from framework.errors import UserError


def warc_rows(file: DataFile, without: Collection[int] = ()) -> Iterator[Row]:
    """Yield the page of each HTML response with `text` and `url`; a page without text has an empty one.

    Those at the places `without` are not unpacked and have no `text`; nor has one that can't be, but an `error`.

    Raises UserError for a file that is no WARC, or ends within a record.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    number = page = 0
    with open_data(file) as stream:  # FastWARC's own unpacking takes a file that was cut off for whole
        try:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=True):
                number += 1
                if (record.http_content_type or "").endswith("html"):
                    fields = {"url": record.headers.get("WARC-Target-URI", "")}
                    if page not in without:
                        content = record.reader.read()
                        try:
                            fields["text"] = _text(content, record.http_charset)
                        except Exception as error:  # of this page: the others go on
                            fields["error"] = f"{type(error).__name__}: {error}"
                    page += 1
                    yield Row(f"{file}: row {number}", fields)
        except Exception as error:
            if isinstance(error, EOFError | zlib.error) or getattr(error, "errno", None):
                raise  # of the disk or the packed file: `open_data` says so
            where = f"{file}: row {number + 1}"
            raise UserError(where, " ".join(str(error).split())[:200], "must be a record of a WARC file") from None


def _text(content: bytes, charset: str | None) -> str:
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    encoding = charset or detect_encoding(content) or "utf-8"
    page = bytes_to_str(content, encoding, errors="replace")
    return str(extract_plain_text(page, main_content=True, alt_texts=False))
