"""The report in a real Chromium, opened from disk: no console errors, tables that sort, a viewer that draws.

Skipped where chromium, its driver or Selenium is absent; the viewer's test also where NiiVue is.
"""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from test_report import Factory

from medssl.report import write_report
from medssl.report.viewer import PACKAGE, find_niivue

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install 'medssl[browser]'")

FLAGS = ("--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync")  # fmt: skip

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver, on Debian `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report on two methods with two labelled counts, with a viewer where NiiVue is found."""
    factory = Factory(tmp_path_factory.mktemp("seen"))
    runs = []
    for labelled, shifts in ((1, {"supervised": 1, "bcp": 2}), (2, {"supervised": 1, "bcp": 0})):
        for method, shift in shifts.items():
            parts = {"labelled": ["x", "w"][:labelled]}
            run = factory.run(f"{method}-{labelled}", method, 1, splits=parts)
            runs.append(factory.score(run, {"a": {"liver": shift}, "b": {"liver": 1, "stone": 3}}, uncertainty=0.25))
    return write_report(runs, factory.root / "report", workers=0).parent


@pytest.fixture
def page(browser, folder):
    width(browser, 1440)
    browser.get((folder / "report.html").as_uri())
    return browser


def width(browser, pixels):
    size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": pixels < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def complaints(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def column(browser, table, index):
    cells = browser.find_elements("css selector", f"#{table} tbody tr > :nth-child({index})")
    return [cell.text.splitlines()[0] for cell in cells]


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(condition)


def test_the_page_opens_from_disk_without_a_complaint(page):
    assert page.title == "Comparison of runs"
    broken = "return [...document.images].filter((image) => !image.complete || !image.naturalWidth).length"
    assert page.execute_script("return document.images.length") > 10
    assert page.execute_script(broken) == 0
    assert complaints(page) == []


@pytest.mark.parametrize("pixels", [390, 1440])
def test_nothing_but_tables_is_wider_than_the_window(page, pixels):
    width(page, pixels)
    assert page.execute_script("return document.documentElement.scrollWidth") <= pixels


def test_a_click_on_a_head_sorts_and_another_turns_the_order(page):
    head = page.find_element("css selector", "#methods thead th:nth-child(3)")
    button = head.find_element("css selector", "button")
    before = [float(text.split(" ±")[0]) for text in column(page, "methods", 3)]
    assert before != sorted(before)
    for direction, order in (("ascending", sorted(before)), ("descending", sorted(before, reverse=True))):
        button.click()
        assert head.get_attribute("aria-sort") == direction
        assert [float(text.split(" ±")[0]) for text in column(page, "methods", 3)] == order


def test_a_table_sorts_by_keyboard_and_undefined_numbers_stay_last(page):
    button = page.find_element("css selector", "#methods thead th:nth-child(6) button")
    assert column(page, "methods", 6).count("–") == 2
    for _ in range(2):
        button.send_keys("\ue007")  # Enter
        assert column(page, "methods", 6)[-2:] == ["–", "–"]


def test_groups_of_a_table_stay_together_when_it_is_sorted(page):
    page.find_element("css selector", "#classes thead th:nth-child(2) button").click()
    groups = page.find_elements("css selector", "#classes tbody")
    assert [group.text.splitlines()[0] for group in groups] == ["liver", "stone"]
    assert all(len(group.find_elements("css selector", "tr")) == 5 for group in groups)


def test_the_page_prints(page):
    printed = page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    assert len(printed["data"]) > 50_000


# ---- the viewer


@pytest.fixture
def viewer(page, folder):
    if find_niivue() is None:
        pytest.skip(f"needs {PACKAGE}: `medssl report --viewer` fetches it, or `npm install {PACKAGE}`")
    assert (folder / "viewer" / "niivue.js").exists()
    page.execute_script("document.getElementById('viewer').scrollIntoView()")
    return shown(page, "")


def shown(page, title):
    status = page.find_element("id", "viewer-status")
    wait(page, lambda _: status.text and "loading" not in status.text and title in status.text)
    assert "cannot" not in status.text, status.text
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    return page


def screen(page, name):
    return np.asarray(Image.open(io.BytesIO(page.find_element("id", name).screenshot_as_png)).convert("RGB"), int)


def test_both_canvases_show_the_scan_and_their_label_map(viewer):
    for name in ("viewer-reference", "viewer-prediction"):
        seen = screen(viewer, name)
        grey = np.ptp(seen, axis=2) < 8
        assert (grey & (seen[..., 0] > 60)).mean() > 0.05, "no scan"
        assert (np.ptp(seen, axis=2) > 60).mean() > 0.002, "no colour"
    assert complaints(viewer) == []


def test_label_maps_and_uncertainty_fade_with_their_sliders(viewer):
    def slide(name, value):
        viewer.execute_script(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input'));", name, value)  # fmt: skip
        viewer.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return screen(viewer, "viewer-prediction")

    bare = slide("viewer-opacity", 0)
    assert (np.ptp(bare, axis=2) > 60).mean() < 0.001
    assert np.abs(slide("viewer-uncertainty", 1) - bare).mean() > 5
    assert np.abs(slide("viewer-uncertainty", 0) - bare).mean() < 1


def test_a_button_beside_a_picture_opens_its_case(viewer):
    before = screen(viewer, "viewer-prediction")
    button = viewer.find_elements("css selector", "button.open")[-1]
    viewer.execute_script("arguments[0].click()", button)
    shown(viewer, "bcp, 2 labelled")
    assert viewer.find_element("id", "viewer-case").get_attribute("value") == button.get_attribute("data-scene")
    assert np.abs(screen(viewer, "viewer-prediction") - before).mean() > 0.5
    assert complaints(viewer) == []
