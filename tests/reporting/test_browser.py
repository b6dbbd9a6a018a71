"""Pages in a browser: no request, no message, and controls that change what is seen. Slow: 3-D without a GPU."""

import shutil
import time

import numpy as np
import pytest

from dlunet.reporting import read_report, write_report
from dlunet.volumes import read_labels
from tests.reporting.conftest import CASES, write_run

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
def runs(data, tmp_path_factory):
    """Three experiments, one of which comes before ``reference`` in the alphabet."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder, data, name, error=error) for name, error in (("bcp", 2), ("sup_light", 3), ("ssl_light", 1))
    ]


@pytest.fixture(scope="module")
def page_file(runs, tmp_path_factory):
    return write_report(read_report(runs, floor="sup_light"), tmp_path_factory.mktemp("report"))


@pytest.fixture
def opened(chromium, page_file):
    """Open the report; at the end of the test it must have asked for nothing and said nothing."""
    said, pages = [], []

    def open_page(start_viewer=True, script="", **how):
        page = chromium.new_page(**how)
        pages.append(page)
        page.add_init_script(script)
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
    page.uncheck("[name=map] >> nth=0")
    assert pixels(page) == seen[-1], "a label map without classes is invisible"
    page.click("[name=organs][value=all]")
    page.check("[name=map] >> nth=1")
    changed("label map")
    page.select_option("[name=compared]", label="bcp")
    changed("differences")
    for view, slices in (("axial", 12), ("coronal", 20), ("sagittal", 26)):
        page.select_option("[name=view]", view)
        changed(view)
        assert page.locator("[name=place]").text_content().endswith(f" of {slices}")
        page.locator("[name=slice]").press("ArrowLeft")
        changed(f"slice, {view}")
    page.select_option("[name=view]", "render")
    changed("3-D")
    page.select_option("[name=window]", "bone")
    changed("window")


def test_keys_move_and_turn_and_change_nothing_that_has_a_control(opened):
    page = opened(viewport={"width": 1100, "height": 900})
    page.locator("#viewer canvas").hover()
    page.locator("#viewer canvas").focus()
    before = pixels(page)
    for key in "vcp":
        page.keyboard.press(key)
    assert pixels(page) == before
    page.keyboard.press("h")
    moved = pixels(page)
    page.select_option("[name=view]", "render")
    page.locator("#viewer canvas").focus()
    shown = pixels(page)
    page.keyboard.press("l")
    assert moved != before and pixels(page) != shown


def test_marked_differences_are_those_of_the_files(opened, runs, data):
    """1 missed, 2 added, 3 another class, where a chosen class is involved, on the voxels that the page has."""
    page = opened()
    page.uncheck("[name=organ][value='11']")
    page.uncheck("[name=organ][value='3']")
    chosen = [label for label in range(1, 14) if label not in (3, 11)]
    for run in runs:
        page.select_option("[name=compared]", label=run.parent.name)
        for case in CASES:
            page.select_option("[name=case]", label=case) if case in options(page) else None
            page.wait_for_function("name => document.getElementById('viewer').dataset.shown === name", arg=case)
            files = data / "Testing" / "labels" / f"{case}.nii.gz", run / "predictions" / f"{case}.nii.gz"
            reference, found = (read_labels(file).array[:, 1::2, 1::2] for file in files)
            differs = (reference != found) & (np.isin(reference, chosen) | np.isin(found, chosen))
            expected = np.where(differs, np.select([found == 0, reference == 0], [1, 2], 3), 0)
            marks = page.evaluate("[...document.getElementById('viewer').viewer.differences.img]")
            assert np.array_equal(marks, expected.ravel()), (run, case)
            assert len(np.unique(expected)) > 2


def test_differences_are_not_shown_where_there_is_no_prediction(chromium, data, tmp_path):
    run = write_run(tmp_path / "runs", data, "ssl_light")
    other = write_run(tmp_path / "runs", data, "sup_light", error=2)
    (other / "predictions" / f"{CASES[0]}.nii.gz").unlink()
    page = chromium.new_page()
    page.goto(write_report(read_report([run, other]), tmp_path / "report").as_uri())
    page.locator("#viewer").scroll_into_view_if_needed()
    page.wait_for_selector("#viewer[data-shown]")
    page.select_option("[name=case]", label=CASES[1])
    page.wait_for_selector(f"#viewer[data-shown='{CASES[1]}']")
    page.select_option("[name=compared]", label="sup_light")
    page.select_option("[name=case]", label=CASES[0])
    page.wait_for_selector(f"#viewer[data-shown='{CASES[0]}']")
    assert page.locator("[name=compared]").input_value() == ""
    assert page.locator("[name=compared] option", has_text="sup_light").is_disabled()
    page.close()


def options(page):
    return page.locator("[name=case] option").all_text_contents()


def test_a_click_on_a_case_shows_it_also_before_the_viewer_has_started(opened):
    page = opened(start_viewer=False, viewport={"width": 900, "height": 500})
    last = page.locator("[data-case]").last
    last.scroll_into_view_if_needed()
    last.click()
    name = last.text_content().strip()
    page.wait_for_selector(f"#viewer[data-shown='{name}']")
    assert page.locator("[name=case]").input_value() == name
    assert page.locator("#viewer .caption").text_content().startswith("best, DSC")
    for case in (options(page)[0], options(page)[1], options(page)[2]):  # faster than they can be shown
        page.select_option("[name=case]", label=case)
    page.wait_for_function("name => document.getElementById('viewer').dataset.shown === name", arg=case)


def test_tables_are_sorted_by_their_titles(opened):
    page = opened(start_viewer=False)

    def column(number):
        return page.locator(f"#cases tbody tr > :nth-child({number})").all_text_contents()

    worst_first = [float(text) for text in column(4)]
    assert worst_first == sorted(worst_first) and len(set(worst_first)) == 4
    title = page.locator("#cases thead th").nth(3)
    for expected in (sorted(worst_first), sorted(worst_first, reverse=True)):
        title.locator("button").click()
        assert [float(text) for text in column(4)] == expected
    assert title.get_attribute("aria-sort") == "descending"
    page.locator("#cases thead th button").first.click()
    assert [name.strip() for name in column(1)] == list(CASES)
    floor = page.locator("#paired thead th").nth(4)
    for _ in range(2):  # the floor, which is not compared with itself, stays last
        floor.locator("button").press("Enter")
        assert page.locator("#paired tbody tr th").all_text_contents()[-1].strip() == "sup_light"


def test_it_fits_a_phone_and_a_sheet_of_paper(opened):
    page = opened(viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 30)"
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 1046, "height": 740})  # A4, turned, without its margins
    assert not page.locator("#viewer").is_visible() and page.locator("#panels img").is_visible()
    widest = page.evaluate("Math.max(...[...document.querySelectorAll('table, img')].map((each) => each.offsetWidth))")
    assert widest <= 1046
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#provenance td >> text=0123abcd").first.is_visible()
    assert not page.locator(".configuration").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert not page.locator("details[open]").count()


def test_without_webgl_the_pictures_stay(opened):
    page = opened(start_viewer=False, script="HTMLCanvasElement.prototype.getContext = () => null")
    assert not page.locator("#viewer").is_visible() and page.locator("#panels img").is_visible()
    assert page.locator("[data-case]").first.is_disabled()
    assert "needs WebGL 2" in page.locator("#without-viewer:visible").text_content()


def test_a_case_that_cannot_be_shown_is_named_and_the_others_can_be(opened):
    page = opened()
    _, second, third, *_ = options(page)
    page.evaluate("document.getElementById('viewer').viewer.data.cases[1].image = btoa('not compressed')")
    page.select_option("[name=case]", label=second)
    page.wait_for_selector("#viewer .failure:visible")
    assert page.locator("#viewer .failure").text_content().startswith(f"{second} cannot be shown: ")
    page.select_option("[name=case]", index=2)
    page.wait_for_function("name => document.getElementById('viewer').dataset.shown === name", arg=third)
    assert not page.locator("#viewer .failure").is_visible() and page.locator("#viewer canvas").is_visible()


def test_a_viewer_that_cannot_start_says_so(opened):
    page = opened(start_viewer=False, script="delete globalThis.DecompressionStream")
    page.locator("#viewer").scroll_into_view_if_needed()
    page.wait_for_selector("#viewer .failure:visible")
    assert "DecompressionStream" in page.locator("#viewer .failure").text_content()
    assert not page.locator("#viewer canvas").is_visible()


def test_a_large_page_opens_at_once(chromium, page_file, tmp_path):
    """40 MB, the most that a page may have."""
    source, filling = page_file.read_text(), "A" * (40_000_000 - page_file.stat().st_size)
    large = tmp_path / "large.html"
    large.write_text(
        source.replace('id="niivue">', f'id="filling">{filling}</script><script type="text/plain" id="niivue">')
    )
    page = chromium.new_page()
    begin = time.perf_counter()
    page.goto(large.as_uri())
    page.screenshot()
    assert time.perf_counter() - begin <= 3
    page.close()
