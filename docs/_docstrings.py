r"""What docstrings and pages have beyond Markdown: formulas and doctests.

``:math:`...` `` and, as code hosts have it, ``$`...`$`` in a line and ``.. math::`` blocks become MathML, which
browsers draw without a script from elsewhere; a block of ``>>>`` becomes code, in colour, rather than a quotation.
"""

import html
import re
from xml.etree.ElementTree import Element, SubElement

from latex2mathml.converter import convert_to_element
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonConsoleLexer


def _mathml(formula: str, display: str = "inline") -> Element:
    """A formula as browsers draw it; for blackboard letters and set difference those want the characters."""
    formula = re.sub(r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}", " ".join(formula.split()))
    return convert_to_element(formula.replace(r"\setminus", "∖"), display=display)


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element, int, int]:  # noqa: N802
        element = _mathml(m.group(1))
        if len(m.group(1)) > 60:  # may be wider than a phone
            wrapper = Element("span", {"class": "formula"})
            wrapper.append(element)
            element = wrapper
        return element, m.start(0), m.end(0)


class _Block(BlockProcessor):
    START = re.compile(r"^\.\. math::\s*")

    def test(self, parent: Element, block: str) -> bool:
        return bool(self.START.match(block))

    def run(self, parent: Element, blocks: list[str]) -> None:
        lines = self.START.sub("", blocks.pop(0)).splitlines()
        formula = [lines[0], *(line for line in lines[1:] if line.startswith(" "))]
        rest = lines[len(formula) :]
        parent.append(_mathml(" ".join(formula), "block"))
        if rest:
            blocks.insert(0, "\n".join(rest))


class _Doctest(BlockProcessor):
    def test(self, parent: Element, block: str) -> bool:
        return block.startswith(">>> ")

    def run(self, parent: Element, blocks: list[str]) -> None:
        code = SubElement(SubElement(parent, "pre"), "code", {"class": "language-pycon"})
        code.text = AtomicString(blocks.pop(0) + "\n")


class _Colours(Treeprocessor):
    """Doctests, those of a section of examples too, as a console of Python."""

    def run(self, root: Element) -> None:
        for block in list(root.iter("pre")):
            code = block.find("code")
            if code is not None and (code.text or "").startswith((">>> ", "&gt;&gt;&gt; ")):
                text = html.unescape(code.text or "")
                shown = highlight(text, PythonConsoleLexer(), HtmlFormatter(wrapcode=True))
                block.clear()
                block.tag = "p"  # of which nothing is left
                block.text = self.md.htmlStash.store(shown)


class DocstringExtension(Extension):
    """Adds these forms to Python-Markdown, ahead of code spans, code blocks and quotations."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.inlinePatterns.register(_Inline(r":math:`([^`]+)`", md), "igr-math", 200)
        md.inlinePatterns.register(_Inline(r"\$`([^`]+)`\$", md), "igr-math-of-hosts", 200)
        md.parser.blockprocessors.register(_Block(md.parser), "igr-math-block", 200)
        md.parser.blockprocessors.register(_Doctest(md.parser), "igr-doctest", 200)
        md.treeprocessors.register(_Colours(md), "igr-colours", 31)  # before pymdownx has its turn


# Where torch documents what signatures name: known here, so that a build asks nobody.
_TORCH = {
    "torch.Tensor": "tensors.html#torch.Tensor",
    "torch.Generator": "generated/torch.Generator.html#torch.Generator",
    "torch.Size": "size.html#torch.Size",
    "torch.device": "tensor_attributes.html#torch.device",
    "torch.dtype": "tensor_attributes.html#torch.dtype",
    "torch.nn.Module": "generated/torch.nn.Module.html#torch.nn.Module",
    "torch.optim.Optimizer": "optim.html#torch.optim.Optimizer",
    **{
        f"torch.distributions.{name}": f"distributions.html#torch.distributions.{module}.{name}"
        for module, name in (
            ("categorical", "Categorical"),
            ("distribution", "Distribution"),
            ("independent", "Independent"),
            ("one_hot_categorical", "OneHotCategorical"),
            ("transformed_distribution", "TransformedDistribution"),
        )
    },
    "torch.distributions.transforms.Transform": "distributions.html#module-torch.distributions.transforms",
    "torch.distributions.constraints.Constraint": "distributions.html#module-torch.distributions.constraints",
}


def on_pre_build(config):
    """MkDocs calls this when all plugins are there."""
    for name, place in _TORCH.items():
        config.plugins["autorefs"].register_url(
            name, f"https://docs.pytorch.org/docs/stable/{place}"
        )


def on_config(config):
    """MkDocs calls this before it builds."""
    config.markdown_extensions.append(DocstringExtension())
    return config
