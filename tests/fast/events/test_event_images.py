"""An organiser's container image: named in the form, the API or a file; checked; given to each seat; shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from event_rig import SETTINGS, EventWorld

from portico.errors import Invalid
from portico.model import EventApp

COURSE = 'name = "Course"\nreach = "http"\n[container]\nscript = "outside"\nrequired = false\n'


@pytest.fixture
def world(tmp_path: Path) -> Iterator[EventWorld]:
    (tmp_path / "images/school").mkdir(parents=True)
    (tmp_path / "images/other.sif").touch()
    world = EventWorld(tmp_path, image_dirs=(str(tmp_path / "images"),))
    world.write_app("course", COURSE)
    yield world
    world.close()


def test_an_image_is_named_in_the_form_and_each_seat_starts_in_it(world: EventWorld) -> None:
    image = f"{world.folder}/images/school"
    cookie = world.sign_in("olga")
    page = world.ask("GET", "/events/new", cookie=cookie).text
    assert 'name="image-course" list="images-course"' in page and 'name="image-shell"' not in page
    assert f'<option value="{image}">' in page and f'<option value="{world.folder}/images/other.sif">' in page
    world.make_event(settings=replace(SETTINGS, apps=(EventApp("course"), EventApp("shell"))))
    form = {
        "title": "School", "begins": "2027-03-01T08:00", "ends": "2027-03-02T18:00", "colour": "#ffee00",
        "second_colour": "#003366", "fetch_hours": "1", "app-course": "1", "app-shell": "1", "image-course": f" {image} ",
    }  # fmt: skip
    for wrong in ("/etc", f"{image}/../../x", f"{image}\n-w", f"{image}:/etc", "school"):
        answer = world.ask("POST", "/events/school", cookie=cookie, data=form | {"image-course": wrong})
        assert answer.status_code == 422 and "Course: Container image:" in answer.text, wrong
        assert 'aria-invalid="true"' in answer.text.partition('name="image-course"')[2].partition(">")[0]
    assert world.ask("POST", "/events/school", cookie=cookie, data=form).status_code == 303
    event = world.run(world.events.get_event(world.olga, "school"))
    assert event.settings.apps == (EventApp("course", image=image), EventApp("shell"))
    assert f'value="{image}"' in world.ask("GET", "/events/school/edit", cookie=cookie).text

    names = [view.seat.name for view in world.run(world.events.seats.list_seats(world.olga, "school"))]
    for app_id, values in (("course", {"image": image}), ("shell", {})):
        session = world.run(world.events.desk.start_ahead(world.seat(names[0]), event, app_id))
        assert session.values == values
    page = world.ask("GET", f"/sessions/{session.id}", cookie=cookie)
    assert page.status_code == 404  # an organiser's page is no way to a participant's session


def test_the_page_of_a_session_says_which_image(world: EventWorld) -> None:
    image = f"{world.folder}/images/school"
    cookie = world.sign_in("olga")
    answer = world.ask("POST", "/apps/course", cookie=cookie, data={"field-image": image})
    page = world.ask("GET", answer.headers["location"], cookie=cookie).text
    assert f"<dt>Image</dt><dd>{image}</dd>" in page
    form = world.ask("GET", "/apps/course", cookie=cookie).text
    assert 'list="field-image-proposed"' in form and f'<option value="{image}">' in form
    answer = world.ask("POST", "/apps/course", cookie=cookie, data={"field-image": "/etc/passwd"})
    assert answer.status_code == 422 and 'role="alert"' in answer.text


@pytest.mark.parametrize("image", ["/etc", "relative", "{images}", "{images}/../x", "{images}/-w", "{images}/a b"])
def test_an_image_from_elsewhere_is_refused(world: EventWorld, image: str) -> None:
    image = image.format(images=f"{world.folder}/images")
    with pytest.raises(Invalid) as caught:
        world.make_event(settings=replace(SETTINGS, apps=(EventApp("course", image=image),)))
    assert caught.value.field == "image-course"


def test_an_app_that_needs_an_image_takes_the_first_where_none_is_chosen(world: EventWorld) -> None:
    world.write_app("needy", COURSE.replace("false", "true"))
    cookie = world.sign_in("olga")
    first = f"{world.folder}/images/other.sif"
    assert f'placeholder="{first}"' in world.ask("GET", "/apps/needy", cookie=cookie).text
    for data in ({}, {"field-image": ""}):
        answer = world.ask("POST", "/apps/needy", cookie=cookie, data=data)
        page = world.ask("GET", answer.headers["location"], cookie=cookie).text
        assert f"<dt>Image</dt><dd>{first}</dd>" in page
    (world.folder / "images/other.sif").unlink()
    (world.folder / "images/school").rmdir()
    answer = world.ask("POST", "/apps/needy", cookie=cookie)
    assert answer.status_code == 422 and "Container image: please choose one." in answer.text


def test_an_app_that_knows_no_images_has_none(world: EventWorld) -> None:
    with pytest.raises(Invalid, match="Shell runs in no image"):
        world.make_event(settings=replace(SETTINGS, apps=(EventApp("shell", image=f"{world.folder}/images/school"),)))


def test_the_api_takes_and_returns_it(world: EventWorld) -> None:
    image = f"{world.folder}/images/school"
    cookie = world.sign_in("olga")
    body = {
        "slug": "school", "title": "School", "begins": "2027-03-01T08:00Z", "ends": "2027-03-02T18:00Z",
        "settings": {"apps": [{"app_id": "course", "image": image}]},
    }  # fmt: skip
    answer = world.ask("POST", "/api/v1/events", cookie=cookie, json=body)
    assert answer.status_code == 201, answer.text
    found = world.ask("GET", "/api/v1/events/school", cookie=cookie).json()
    assert found["settings"]["apps"][0]["image"] == image
