"""The pages of events: what people see, one browser's way to a seat, and what an attacker's words can't do."""

from __future__ import annotations

import io
import re
import tarfile
from dataclasses import replace
from typing import Any

import httpx
import pytest
from event_rig import SETTINGS, EventWorld

from portico.model import EventApp, EventSettings
from portico.portal.pages.event_door import find_ink

EVIL = '"><script>alert(1)</script>{{7*7}}'
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


class Browser:
    """Keeps cookies as a browser does."""

    def __init__(self, world: EventWorld) -> None:
        self.world = world
        self.cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        answer = self.world.ask(method, path, headers=headers, **more)
        for line in answer.headers.get_list("set-cookie"):
            name, _, rest = line.partition("=")
            self.cookies[name] = rest.partition(";")[0]
        return answer

    def get_token(self) -> str:
        found = re.search(r'name="token" value="([\w-]+)"', self.ask("GET", "/e/school/register").text)
        assert found
        return found[1]

    def register(self, token: str = "", **fields: str) -> httpx.Response:
        form = {"field-name": "Ada", "field-level": "low", "accept-0": "1"} | fields
        return self.ask("POST", "/e/school/register", data={"token": token or self.get_token()} | form)


def test_a_link_a_form_a_seat_a_card(world: EventWorld) -> None:
    world.make_event(seats=2)
    browser = Browser(world)
    page = browser.ask("GET", "/e/school")
    assert page.status_code == 200 and "The School" in page.text and "Get a seat" in page.text
    form = browser.ask("GET", "/e/school/register").text
    assert "Be <em>kind</em>." in form and 'name="field-name"' in form
    answer = browser.register()
    assert (answer.status_code, answer.headers["location"]) == (303, "/e/school/card")
    card = browser.ask("GET", "/e/school/card").text
    secret = re.search(r'id="secret">([\w-]{19})<', card)
    assert secret and "ev1-01" in card and "<svg" in card and "http://localhost:8000/e/school" in card
    again = browser.ask("GET", "/e/school/card").text
    assert secret[1] in again, "a page that is loaded again shows the same"
    assert secret[1] not in str(answer.headers) and secret[1] not in answer.headers["location"]
    home = browser.ask("GET", "/e/school/home").text
    assert "Shell" in home and "Screen" in home and "Book" not in home
    assert browser.ask("GET", "/").headers["location"] == "/e/school/home"
    started = browser.ask("POST", "/e/school/apps/shell")
    assert started.headers["location"].startswith("/sessions/")
    page = browser.ask("GET", started.headers["location"]).text
    assert "/share" not in page and "/account" not in page
    other = Browser(world)
    form_of_card = {"name": "ev1-01", "secret": secret[1]}
    answer = other.ask("POST", "/e/school/sign-in", data=form_of_card)
    assert answer.headers["location"] == "/e/school/home"
    assert other.ask("POST", "/e/school/apps/shell").headers["location"] == started.headers["location"]
    assert 'id="secret"' not in other.ask("GET", "/e/school/card").text, "it is kept nowhere"


def test_two_tabs_of_a_browser_and_a_form_sent_twice(world: EventWorld) -> None:
    world.make_event(seats=3)
    browser = Browser(world)
    one, two = browser.get_token(), browser.get_token()
    assert one == two, "two tabs have the same form"
    first = browser.register(one)
    assert first.status_code == 303
    signed_out = Browser(world)  # the answer was lost on the way: no cookie came
    assert signed_out.register(one).headers["location"] == "/e/school/card"
    assert browser.register(two).headers["location"] == "/e/school/card"
    assert browser.ask("GET", "/e/school/register").headers["location"] == "/e/school/card"
    with world.store.read() as tx:
        assert [seat.name for seat in tx.list_seats(1) if seat.taken] == ["ev1-01"]


def test_a_form_with_a_fault_keeps_what_was_written_and_its_token(world: EventWorld) -> None:
    world.make_event(seats=1)
    browser = Browser(world)
    token = browser.get_token()
    wrong = browser.register(token, **{"field-level": "none such"})
    assert wrong.status_code == 422 and 'value="Ada"' in wrong.text and token in wrong.text
    assert 'aria-invalid="true"' in wrong.text
    assert browser.register(token).status_code == 303


def test_the_waiting_list_in_a_browser(world: EventWorld) -> None:
    world.make_event(seats=1)
    Browser(world).register()
    browser = Browser(world)
    waits = browser.register()
    assert waits.status_code == 200 and "number 1 of the waiting list" in waits.text
    assert "number 1" in browser.ask("GET", "/e/school/register").text
    assert browser.ask("GET", "/e/school/home").headers["location"] == "/e/school/sign-in"
    world.run(world.events.seats.add(world.olga, "school", 1))
    world.turn()
    here = browser.ask("GET", "/e/school/register").text
    assert "Your seat is here" in here and "portico" not in browser.cookies
    token = re.search(r'name="token" value="([\w-]+)"', here)
    assert token
    answer = browser.ask("POST", "/e/school/register", data={"token": token[1]})
    assert answer.headers["location"] == "/e/school/card"
    assert 'id="secret"' in browser.ask("GET", "/e/school/card").text


@pytest.mark.parametrize(("step", "says"), [("close", "closed"), ("end", "has ended")])
def test_an_event_that_is_over_says_so(world: EventWorld, step: str, says: str) -> None:
    world.make_event(seats=1)
    browser = Browser(world)
    token = browser.get_token()
    world.run(getattr(world.events, step)(world.olga, "school"))
    page = browser.ask("GET", "/e/school").text
    assert says in page and "Get a seat" not in page
    assert browser.register(token).status_code == 409


def test_a_draft_is_seen_by_its_organiser_alone(world: EventWorld) -> None:
    world.make_event(seats=1, opened=False)
    for path in ("/e/school", "/e/school/theme.css", "/e/school/logo", "/e/school/register", "/e/school/sign-in"):
        assert world.ask("GET", path).status_code == 404
        assert world.ask("GET", path, cookie=world.sign_in("otto")).status_code == 404
    preview = world.ask("GET", "/e/school", cookie=world.sign_in("olga"))
    assert preview.status_code == 200 and "A preview" in preview.text


def test_words_of_attackers_stay_words(world: EventWorld) -> None:
    settings = replace(
        SETTINGS, welcome=f"# {EVIL}\n[x](javascript:alert(1))", texts=((f"Terms {EVIL}", EVIL),), start_command=EVIL
    )
    settings = replace(settings, fields=tuple(replace(field, label=f"L {EVIL}") for field in settings.fields[:1]))
    event = world.make_event(seats=1, settings=settings)
    world.run(world.events.change(world.olga, "school", EVIL, event.begins, event.ends, settings))
    browser = Browser(world)
    cookie = world.sign_in("olga")
    pages = [browser.ask("GET", "/e/school"), browser.ask("GET", "/e/school/register")]
    pages.append(browser.register(**{"field-name": EVIL}))
    pages += [browser.ask("GET", f"/e/school/{page}") for page in ("card", "home", "sign-in")]
    pages += [world.ask("GET", path, cookie=cookie) for path in ("/events", "/events/school", "/events/school/edit")]
    pages.append(
        world.ask("POST", "/events/school", cookie=cookie, data={"title": EVIL, "colour": EVIL, "fields": EVIL})
    )
    pages.append(world.ask("POST", "/e/school/sign-in", data={"name": EVIL, "secret": EVIL}))
    pages.append(world.ask("POST", "/events/school/import", cookie=cookie, data={"list": EVIL}))
    for page in pages:
        assert "<script>alert" not in page.text and 'href="javascript' not in page.text, page.url
        assert "{{7*7}}" in page.text or "49" not in page.text
        policy = page.headers["content-security-policy"]
        assert "script-src 'self'" in policy and "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy


def test_a_logo_comes_as_what_it_is_and_runs_nothing(world: EventWorld) -> None:
    world.make_event(seats=0)
    cookie = world.sign_in("olga")
    for bad in (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", b"<html>", b"GIF89a"):
        answer = world.ask("POST", "/events/school/logo", cookie=cookie, files={"file": ("x.png", bad, "image/png")})
        assert answer.status_code == 422 and "PNG" in answer.text
    assert world.ask("GET", "/e/school/logo").status_code == 404
    files = {"file": ("../../x.html", PNG + b"<script>alert(1)</script>", "text/html")}
    assert world.ask("POST", "/events/school/logo", cookie=cookie, files=files).status_code == 303
    logo = world.ask("GET", "/e/school/logo")
    assert logo.headers["content-type"] == "image/png" and logo.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in logo.headers["content-security-policy"]


@pytest.mark.parametrize("slug", ["..%2f..%2fetc", "%2e%2e", "a'b", "<script>", "school%00", "x" * 200])
def test_a_slug_leads_nowhere_else(world: EventWorld, slug: str) -> None:
    world.make_event(seats=0)
    for path in (f"/e/{slug}", f"/e/{slug}/logo", f"/e/{slug}/theme.css", f"/e/{slug}/register"):
        answer = world.ask("GET", path)
        assert answer.status_code == 404 and "<script>" not in answer.text


def test_files_go_up_by_a_form_and_in_parts_and_come_down(world: EventWorld) -> None:
    world.make_event(seats=2)
    browser = Browser(world)
    browser.register()
    files = [("file", ("one.txt", b"1")), ("file", ("two.txt", b"2"))]
    answer = browser.ask("POST", "/e/school/files", files=files)
    assert answer.status_code == 200 and "Uploads/one.txt, Uploads/two.txt" in answer.text
    for name in ("../x", "/etc/x", ".profile"):
        answer = browser.ask("POST", "/e/school/files", files=[("file", (name, b"1"))])
        assert answer.status_code == 422, name
        answer = browser.ask("POST", f"/e/school/files?name={name}&upload=a", content=b"1")
        assert answer.status_code == 422, name
    for number, part in enumerate((b"a" * 300_000, b"b" * 300_000)):
        query = f"name=big.bin&upload=u1&offset={number * 300_000}&last={number == 1}"
        assert browser.ask("POST", f"/e/school/files?{query}", content=part).status_code == 200
    with tarfile.open(fileobj=io.BytesIO(browser.ask("GET", "/e/school/archive").content)) as tar:
        assert {"home/Uploads/one.txt", "home/Uploads/big.bin"} <= set(tar.getnames())
        assert tar.getmember("home/Uploads/big.bin").size == 600_000


def test_too_large_a_file_is_refused_and_one_of_nobody_not_even_read(world: EventWorld) -> None:
    world.make_event(seats=1)
    large = b"x" * 15_600_000
    assert world.ask("POST", "/e/school/files?name=a&upload=a", content=large).status_code == 401
    browser = Browser(world)
    browser.register()
    answer = browser.ask("POST", "/e/school/files?name=a&upload=a", content=large)
    assert answer.status_code == 422 and "too large" in answer.text
    assert (
        world.ask("POST", "/events/school/seats", cookie=world.sign_in("olga"), content=b"x" * 300_000).status_code
        == 413
    )


def test_the_organisers_page_shows_seats_and_makes_papers(world: EventWorld) -> None:
    world.make_event(seats=3)
    world.claim(answers={"name": "=HYPERLINK(1)"})
    cookie = world.sign_in("olga")
    page = world.ask("GET", "/events/school", cookie=cookie).text
    assert "ev1-03" in page and "=HYPERLINK(1)" in page and "/e/school" in page
    sheet = world.ask("POST", "/events/school/sheet", cookie=cookie)
    assert sheet.headers["content-type"] == "application/pdf" and sheet.content.startswith(b"%PDF-")
    assert "attachment" in sheet.headers["content-disposition"]
    listed = world.ask("POST", "/events/school/list", cookie=cookie).text.splitlines()
    assert listed[1].endswith(",") and len(listed[2].rpartition(",")[2]) == 19
    csv = world.ask("GET", "/events/school/seats.csv", cookie=cookie)
    assert "'=HYPERLINK(1)" in csv.text and csv.headers["content-type"].startswith("text/csv")
    new = world.ask("POST", "/events/school/seats/ev1-01/secret", cookie=cookie).text
    secret = re.search(r'id="secret">([\w-]{19})<', new)
    assert secret and secret[1] not in world.ask("GET", "/events/school", cookie=cookie).text
    assert (
        Browser(world).ask("POST", "/e/school/sign-in", data={"name": "ev1-01", "secret": secret[1]}).status_code == 303
    )


def test_an_event_is_made_by_a_form(world: EventWorld) -> None:
    cookie = world.sign_in("olga")
    form = {
        "title": "Course", "slug": "course", "seats": "2", "begins": "2027-03-01T08:00", "ends": "2027-03-02T18:00",
        "app-shell": "1", "hours-shell": "2,5", "registration": "1", "fields": "Name*\nLevel: a, b",
        "text-name-0": "Terms", "text-0": "Be kind.", "text-name-1": "Privacy", "text-1": " ", "fetch_hours": "24",
        "colour": "#ffee00", "second_colour": "#003366", "welcome": "# Hello",
    }  # fmt: skip
    for wrong in ({"slug": "A b"}, {"begins": "soon"}, {"hours-shell": "x"}, {"seats": "many"}, {"colour": "red"}):
        answer = world.ask("POST", "/events", cookie=cookie, data=form | wrong)
        assert answer.status_code == 422 and 'role="alert"' in answer.text and "Be kind." in answer.text
    answer = world.ask("POST", "/events", cookie=cookie, data=form)
    assert answer.headers["location"] == "/events/course"
    event = world.run(world.events.get_event(world.olga, "course"))
    assert event.settings.apps == (EventApp("shell", hours=2.5),) and event.settings.texts == (("Terms", "Be kind."),)
    assert [field.required for field in event.settings.fields] == [True, False]
    page = world.ask("GET", "/events/course/edit", cookie=cookie).text
    assert "Level: a, b" in page and 'value="2.5"' in page and "2027-03-02T18:00" in page
    changed = {name: text for name, text in form.items() if name not in ("registration", "app-shell")}
    assert world.ask("POST", "/events/course", cookie=cookie, data=changed | {"title": "New"}).status_code == 303
    event = world.run(world.events.get_event(world.olga, "course"))
    assert (event.title, event.settings.registration, event.settings.apps) == ("New", False, ())
    theme = world.ask("GET", "/e/course/theme.css", cookie=cookie)
    assert theme.headers["content-type"].startswith("text/css")
    assert "--event: #ffee00; --on-event: #000000;" in theme.text and "--on-event-second: #ffffff" in theme.text


def test_ink_reads_on_every_colour() -> None:
    for colour in ("#000000", "#ffffff", "#2059bd", "#777777", "#ff0000", "#00ff00"):
        assert find_ink(colour) in ("#000000", "#ffffff")
    assert find_ink("#ffffff") == "#000000" and find_ink("#000000") == "#ffffff"


def test_the_removal_is_shown_before(world: EventWorld) -> None:
    world.make_event(seats=2)
    world.claim()
    cookie = world.sign_in("olga")
    world.ask("POST", "/events/school/do/end", cookie=cookie)
    page = world.ask("GET", "/events/school/remove", cookie=cookie).text
    assert "ev1-01, ev1-02" in page and "1 registrations" in page and "It is early." in page
    assert world.ask("POST", "/events/school/remove", cookie=cookie).status_code == 409
    assert world.ask("POST", "/events/school/remove", cookie=cookie, data={"early": "1"}).status_code == 303
    world.turn()
    page = world.ask("GET", "/events/school", cookie=cookie).text
    assert "seats taken" in page and "1 of 2 taken" in page and "Ada" not in page
    assert "This event is over" in world.ask("GET", "/e/school").text
    assert world.ask("POST", "/e/school/sign-in", data={"name": "ev1-01", "secret": "x"}).status_code == 409


def test_an_event_without_questions_needs_one_click(world: EventWorld) -> None:
    world.make_event(seats=1, settings=EventSettings(apps=(EventApp("shell"),)))
    browser = Browser(world)
    token = browser.get_token()
    assert browser.ask("POST", "/e/school/register", data={"token": token}).status_code == 303
    assert browser.ask("GET", "/e/school/home").status_code == 200
