"""The page of the fleet in a real browser: it works, nothing in it runs but our script, and all can use it."""

import re
import time

import pytest
from axe_playwright_python.sync_playwright import Axe

from lab import picture

NOW = 1795399800  # 2026-11-23T02:10:00Z
HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=1">',
    "{{ 7 * 7 }}{% raw %}",
    "</style></script>\u2028",
)
ANSWER = {"running": "14-2.1", "kernelrelease": "5.14.21-default", "supported_until": "2026-12-31"}


def observed(ago):
    hours, minutes = divmod(130 - ago, 60)
    return {"observed": f"2026-11-23T{hours:02}:{minutes:02}:00Z"}


@pytest.fixture(scope="session")
def rooms(load):
    fleets = load("_runners/_kgraft_fleet.py")
    histories = load("_runners/_kgraft_history.py", fleets=fleets)
    return histories, load("_runners/_kgraft_page.py", fleets=fleets, histories=histories)


@pytest.fixture(scope="session")
def fleet():
    """``{id: about}`` as the report has it."""
    machines = {f"db{number}": {"class": "settled", "why": "14-2.1", **ANSWER, **observed(1)} for number in range(30)}
    for number, words in enumerate(HOSTILE):
        machines[f"odd{number}{words}"] = {"class": "stuck", "why": words, **ANSWER, **observed(5), "running": words}
    machines["old"] = {"class": "unpatched", "why": "newer offered", **ANSWER, "running": "9-2.1", **observed(100)}
    machines["gone"] = {"class": "no answer", "why": "nothing in 30 s"}
    return machines


@pytest.fixture(scope="session")
def page_file(rooms, fleet, tmp_path_factory):
    history, page = rooms
    counts = {
        name: sum(about["class"] == name for about in fleet.values()) for name in {a["class"] for a in fleet.values()}
    }
    about = ("boot-1", HOSTILE[0], "apply", "boot", "5.14.21-default")
    transitions = [
        history.Transition("db1", *about, NOW - 9000, 60.0, None, None, None, "finished", NOW - 8940),
        history.Transition("db2", *about, NOW - 9000, 400.0, 1, 300.0, HOSTILE[3], "finished", NOW - 8600),
        history.Transition("db3", *about, NOW - 8000, None, None, None, None, "reboot", NOW - 7999),
        history.Transition("db4", *about, NOW - 7300, None, None, None, None, None, NOW - 7300),
        history.Transition(HOSTILE[1], *about, NOW - 7200, None, 2, 7000.0, HOSTILE[2], None, NOW - 200),
    ]
    report = {"machines": fleet, "counts": counts, "report": ["Not good: some machines are stuck."], "retcode": 4}
    path = tmp_path_factory.mktemp("page") / "kgraft.html"
    path.write_text(page.html(report, "asked live", transitions, 7, NOW), "utf-8")
    return path


@pytest.fixture(params=["light", "dark"])
def page(browser, page_file, request):
    """The page as it is opened, and what the browser complained of."""
    page = browser.new_page(color_scheme=request.param)
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or page.complaints.append(request.url))
    page.goto(page_file.as_uri())
    yield page
    assert page.complaints == []
    assert page.title() == "Live patching"
    page.close()


def visible(page):
    return [row.locator("th").inner_text() for row in page.locator("#machines tbody tr:visible").all()]


def state_of_rows(page):
    return [cell.inner_text() for cell in page.locator("#machines tbody tr:visible td:nth-child(2)").all()]


def test_axe_finds_nothing(page):
    result = Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


def test_who_has_no_data_comes_first_and_who_is_good_last(page, fleet):
    states = state_of_rows(page)
    assert len(states) == len(fleet)
    assert (states[0], states[1], states[-1]) == ("no answer", "stuck", "settled")
    assert page.locator("#left").inner_text() == f"{len(fleet)} of {len(fleet)} machines"


def test_what_machines_say_is_text(page, fleet):
    assert {name for name in visible(page) if name.startswith("odd")} == {
        " ".join(name.replace("\u2028", " ").split()) for name in fleet if name.startswith("odd")
    }
    assert page.locator("main img, main script, main svg svg, [onload], [onerror], [style]").count() == 0


def test_the_policy_lets_nothing_run_but_ours(browser, page_file, tmp_path):
    """As if a value had come through unescaped."""
    bad = "<script>document.title = 1</script><img src=x onerror='document.title = 2'><p id=p style='color: red'>x</p>"
    bad += (
        "<style>#p {color: red}</style><svg onload='document.title = 3'></svg><iframe src='data:text/html,x'></iframe>"
    )
    (tmp_path / "bent.html").write_text(page_file.read_text("utf-8").replace("</main>", bad + "</main>"), "utf-8")
    page = browser.new_page()
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto((tmp_path / "bent.html").as_uri())
    assert page.title() == "Live patching"
    assert page.locator("#p").evaluate("p => getComputedStyle(p).color") != "rgb(255, 0, 0)"
    assert page.locator("#left").inner_text() != "", "ours ran"
    words = "\n".join(refused)
    for what in ("inline script", "inline event handler", "inline style", "frame-src"):
        assert what in words, words
    page.close()


def test_counts_filter_and_say_that_they_do(page):
    stuck = page.get_by_role("button", name=re.compile("stuck"))
    stuck.click()
    assert stuck.get_attribute("aria-pressed") == "true"
    assert set(state_of_rows(page)) == {"stuck"}
    page.get_by_role("button", name=re.compile("no answer")).click()
    assert set(state_of_rows(page)) == {"stuck", "no answer"}
    stuck.click()
    assert state_of_rows(page) == ["no answer"]
    assert page.locator("#left").inner_text().startswith("1 of ")


def test_search_looks_everywhere(page):
    for words, found in (("OLD", ["old"]), ("newer off", ["old"]), ("9-2.1", ["old"]), ("nothing such", [])):
        page.get_by_label("Search").fill(words)
        assert visible(page) == found, words


def test_ages_filter_and_keep_who_never_answered(page):
    page.get_by_label("Last answer").select_option("3600")
    assert visible(page) == ["gone", "old"]


def test_a_column_sorts_both_ways_by_keyboard_alone(page):
    table = page.locator("#machines")
    head = table.get_by_role("columnheader", name="Machine")
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    names = visible(page)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert visible(page) == names[::-1]
    table.get_by_role("columnheader", name="State").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert state_of_rows(page)[0] == "no answer"


def test_every_control_is_reached_by_the_tab_key(page):
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"search", "age", "Machine", "Support ends"} <= reached


def test_the_timeline_shows_each_transition_and_which_one_stuck(page):
    bars = page.locator("svg rect:not(.row)").all()
    heights = {bar.get_attribute("class"): float(bar.get_attribute("height")) for bar in bars}
    assert set(heights) == {"good", "moving", "none", "was", "bad"}
    assert len(bars) == 5
    for look in ("good", "moving", "none"):
        assert heights["bad"] == heights["was"] > 1.5 * heights[look], "to be seen without colours, too"
    hollow = "element => getComputedStyle(element).fill === getComputedStyle(document.body).backgroundColor"
    assert [page.locator(f"svg rect.{look}").evaluate(hollow) for look in ("was", "bad")] == [True, False]
    words = [text.text_content() for text in page.locator("svg text.words").all()]
    assert words == [
        "▲ stuck, 2 h so far",
        "may still run",
        "△ was stuck, took 6 min",
        "ended by a reboot",
        "took 60 s",
    ], "the most urgent first"
    assert page.get_by_role("img", name="Transitions over time").count() == 1
    assert "may still run, stuck for 1 h 56 min and more" in page.locator("table").nth(1).inner_text()


def test_each_state_has_a_shape_of_its_own(page):
    shape = "element => getComputedStyle(element, '::before').content"
    looks = {look: page.locator(f"td.{look}").first.evaluate(shape) for look in ("none", "bad", "good")}
    assert len(set(looks.values())) == 3
    assert "none" not in looks.values()


def test_a_page_that_nobody_renews_says_so(browser, page_file):
    page = browser.new_page()
    for later, words in ((60, ""), (3 * 3600, ", 3 hours ago")):
        page.clock.set_fixed_time(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW + later)))
        page.goto(page_file.as_uri())
        assert page.locator("#late").inner_text() == words
    page.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, page_file):
    page = browser.new_page(viewport={"width": 360, "height": 700})
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


def test_without_javascript_it_is_whole_and_has_no_dead_control(browser, page_file, fleet):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(page_file.as_uri())
    assert page.locator("#machines tbody tr").count() == len(fleet)
    assert not page.locator("#controls").is_visible()
    assert page.locator("button:enabled").count() == 0
    assert page.get_by_role("button", name="2 no answer").count() == 0
    assert page.get_by_role("button", name="1 no answer").is_visible(), "counts are facts"
    assert "stuck for 1 h 56 min and more" in page.locator("main").inner_text()


def test_on_paper_there_are_no_buttons(page):
    page.emulate_media(media="print")
    assert not page.locator("#controls").is_visible()
    assert page.locator("#machines tbody tr").first.is_visible()


def test_three_thousand_machines_weigh_less_than_two_megabytes(rooms, tmp_path):
    history, page = rooms
    about = {
        "class": "stuck",
        "why": "falcon-sensor.service: " + "a reason of some length " * 5,
        **ANSWER,
        **observed(3),
    }
    machines = {f"database-{number:04}.example.com": about for number in range(3000)}
    moves = [
        history.Transition(
            f"database-{number:04}.example.com", f"boot-{number}", "livepatch_14_150500_2_1", "apply", "b", "k",
            NOW - 60 * number, 12.0, 2, 7200.0, "a reason of some length " * 5, "finished", NOW
        )
        for number in range(200)
    ]  # fmt: skip
    report = {"machines": machines, "counts": {"stuck": 3000}, "report": ["Not good."], "retcode": 4}
    assert len(page.html(report, "asked live", moves, 7, NOW).encode()) < 2_000_000


def test_the_picture_in_the_manual_is_made_by_our_script_and_of_one_size(browser):
    shown, made = picture.PICTURE.read_bytes(), picture.take(browser)
    size = slice(16, 24)  # width and height
    assert (made[:8], made[size]) == (shown[:8], shown[size])
    assert made[made.index(b"tEXt") :] == shown[shown.index(b"tEXt") :], "of one and the same page"
