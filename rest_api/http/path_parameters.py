"""The convertor of path parameters: `"/{code:segment}"` in a route. Importing this module registers it."""

from starlette.convertors import Convertor, register_url_convertor

from contracts.url_paths import decode_segment, encode_segment


class SegmentConvertor(Convertor[str]):
    """Convertor between the value of a path parameter, any non-empty text, and a segment of the canonical path."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return the value of a segment."""
        return decode_segment(value)

    def to_string(self, value: str) -> str:
        """Return the segment of a value."""
        return encode_segment(value)


register_url_convertor("segment", SegmentConvertor())
