import pytest

PAGE = """<!doctype html><meta name="viewport" content="width=device-width">
<input type="range" max="9" value="0" id="slider"><output>0</output>
<script>slider.oninput = () => document.querySelector('output').value = slider.value</script>"""


@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_is_opened_at_a_width_and_its_slider_moves_by_mouse_and_keys(
    open_page, tmp_path, width
):
    (tmp_path / "page.html").write_text(PAGE)
    page = open_page(tmp_path / "page.html", width)
    assert page.evaluate("innerWidth") == width
    page.click("#slider")
    assert page.evaluate("document.querySelector('output').value") in "45"
    page.press("End")
    assert page.evaluate("document.querySelector('output').value") == "9"
    assert not page.errors and len(page.addresses) == 1
    assert page.screenshot().startswith(b"\x89PNG")


def test_console_errors_and_exceptions_of_a_page_are_noted(open_page):
    text = "<script>console.error('one'); fetch('http://127.0.0.1:9'); throw Error('two')</script>"
    page = open_page(f"data:text/html,{text}", 390)
    page.wait("true")
    assert "one" in page.errors and any("two" in error for error in page.errors)
    assert "http://127.0.0.1:9/" in page.addresses
