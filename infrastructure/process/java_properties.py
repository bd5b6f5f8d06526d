"""Format of Java's properties files, which Kafka reads."""


def escape_property(value: str) -> str:
    """Return a value escaped for a Java properties file, in ASCII."""
    escaped = value.replace("\\", "\\\\")
    if escaped.startswith(" "):
        escaped = "\\" + escaped
    return "".join(c if " " <= c <= "~" else _unicode_escape(c) for c in escaped)


def _unicode_escape(character: str) -> str:
    """Return a character as Java reads it: one or two UTF-16 units."""
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
