"""Pages in a browser: no request, no message, and controls that change what is seen. Slow: 3-D without a GPU."""

import shutil

import pytest

from dlunet.reporting import read_report, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]

SOFTWARE_3D = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_3D)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(table_3_runs, tmp_path_factory):
    report = read_report(table_3_runs, floor="sup_nnunet")
    return write_report(report, tmp_path_factory.mktemp("report"))


@pytest.fixture
def opened(chromium, page_file):
    """Open the report; at the end of the test it must have asked for nothing and said nothing."""
    said, pages = [], []

    def open_page(start_viewer=True, **how):
        page = chromium.new_page(**how)
        pages.append(page)
        page.set_default_timeout(120_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith("data:") else said.append(request.url))
        page.goto(page_file.as_uri())
        if start_viewer:
            page.locator("#viewer").scroll_into_view_if_needed()
            page.wait_for_selector("#viewer[data-shown]")
        return page

    yield open_page
    assert said == [page_file.as_uri()] * len(pages)
    for page in pages:
        page.close()


def pixels(page):
    """The canvas, once it no longer changes."""
    canvas = page.locator("#viewer canvas")
    last = canvas.screenshot()
    while (now := canvas.screenshot()) != last:
        last = now
    return last


def test_controls_change_what_is_seen(opened):
    page = opened(viewport={"width": 1100, "height": 900})
    seen = [pixels(page)]

    def changed(what):
        seen.append(pixels(page))
        assert seen[-1] != seen[-2], what

    page.locator("[name=slice]").press("ArrowLeft")
    changed("slice")
    assert page.locator("[name=place]").text_content().endswith(" of 12")
    page.uncheck("[name=organ][value='1']")
    changed("class")
    page.click("[name=organs][value=none]")
    changed("no class")
    page.uncheck("[name=map][value=reference]")
    assert pixels(page) == seen[-1], "a label map without classes is invisible"
    page.click("[name=organs][value=all]")
    page.check("[name=map][value=ssl_light]")
    changed("label map")
    page.check("[name=differences]")
    changed("differences")
    page.uncheck("[name=map][value=ssl_light]")
    page.check("[name=map][value=reference]")
    without = pixels(page)
    page.check("[name=map][value=ssl_light]")
    page.uncheck("[name=map][value=ssl_light]")
    assert pixels(page) == without, "nothing differs from the reference without a prediction"
    for view in ("axial", "coronal", "sagittal", "render"):
        page.select_option("[name=view]", view)
        changed(view)
    page.select_option("[name=window]", "bone")
    changed("window")
    before = page.locator("#viewer").get_attribute("data-shown")
    page.locator(f"[data-case]:not([data-case='{before}'])").first.click()
    page.wait_for_function("shown => document.getElementById('viewer').dataset.shown !== shown", arg=before)
    changed("case")


def test_differences_are_counted_like_numpy_does(opened):
    """The script's function on small arrays: missed, added and other classes, only where a chosen class is involved."""
    page = opened()
    source = page.locator("script[type=module]").all()[-1].text_content()
    function = source[source.index("function markDifferences") : source.index("/** The axial slice with the most")]
    marks = page.evaluate(
        f"""() => {{ {function}
        const marks = new Uint8Array(6);
        markDifferences(marks, [0, 1, 2, 1, 2, 1], [[1, 0, 0, 2, 3, 1]], new Set([1, 3]));
        return [...marks]; }}"""
    )
    assert marks == [2, 1, 0, 3, 3, 0]


def test_tables_are_sorted_by_their_titles(opened):
    page = opened(start_viewer=False)

    def column(number):
        return page.locator(f"#cases tbody tr > :nth-child({number})").all_text_contents()

    worst_first = [float(text) for text in column(5)]
    assert worst_first == sorted(worst_first) and len(set(worst_first)) == 4
    title = page.locator("#cases thead th").nth(4)
    for expected in (sorted(worst_first), sorted(worst_first, reverse=True)):
        title.locator("button").click()
        assert [float(text) for text in column(5)] == expected
    assert title.get_attribute("aria-sort") == "descending"
    page.locator("#cases thead th button").first.click()
    assert [name.strip() for name in column(1)] == ["case_1", "case_2", "case_3", "case_4"]


def test_it_fits_a_phone_and_a_sheet_of_paper(opened):
    page = opened(start_viewer=False, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    assert page.locator("#viewer").is_visible()
    page.emulate_media(media="print")
    assert not page.locator("#viewer").is_visible() and page.locator("#panels img").is_visible()


def test_without_webgl_the_pictures_stay(chromium, page_file):
    page = chromium.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(page_file.as_uri())
    assert not page.locator("#viewer").is_visible() and page.locator("#panels img").is_visible()
    assert page.locator("[data-case]").first.is_disabled()
    page.close()
