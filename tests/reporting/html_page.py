"""The parts of a page that tests look at."""

from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    """The parts of a page used by the tests: tables as rows of cells, links, section ids, tags and text."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.links, self.sections, self.images, self.text = [], [], [], [], ""
        self.count, self._bold, self._open = Counter(), False, False
        self.feed(path.read_text(encoding="utf-8"))

    @property
    def tags(self):
        return set(self.count)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.count[tag] += 1
        self.links += [value for key, value in attrs if key in ("src", "href", "action", "data")]
        if tag == "section":
            self.sections.append(attributes.get("id"))
        elif tag == "img":
            self.images.append(attributes)
        elif tag == "table":
            self.tables.append([])
            self._open = True
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "strong":
            self._bold = True

    def handle_endtag(self, tag):
        if tag == "strong":
            self._bold = False
        elif tag == "table":
            self._open = False

    def handle_data(self, data):
        self.text += data
        if self._open and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += f"*{data.strip()}" if self._bold else data.strip()
