"""Seats are claimed once: 60 in a second, the same form again, two tabs, the waiting list, secrets, the card."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from event_rig import ANSWERS, SETTINGS, EventWorld, make_form_token

from portico.errors import Conflict, Forbidden, Invalid, NotFound, NotSignedIn, PorticoError, TooMany
from portico.events import seat_secrets
from portico.events.claims import Claim
from portico.model import EventSettings, SeatState, UserState


def test_sixty_at_once_get_sixty_seats_and_the_next_waits(world: EventWorld) -> None:
    world.make_event(seats=60)

    async def all_at_once() -> list[Claim]:
        register = world.events.claims.register
        return await asyncio.gather(
            *(register("school", make_form_token(), ANSWERS, ["Terms"], "192.0.2.9", "Firefox") for _ in range(63))
        )

    claims = world.run(all_at_once())
    seated = [claim for claim in claims if claim.seat_name]
    assert len({claim.seat_name for claim in seated}) == 60
    assert sorted(claim.position for claim in claims if not claim.seat_name) == [1, 2, 3]
    for claim in seated[:5]:
        assert world.accounts.authenticate(claim.cookie, "").user_name == claim.seat_name
    assert [action for _, action, _ in world.audit()].count("event:register") == 63


def test_the_same_form_any_number_of_times_is_one_seat_and_one_secret(world: EventWorld) -> None:
    world.make_event(seats=5)
    token = make_form_token()

    async def many() -> list[Claim]:
        register = world.events.claims.register
        return await asyncio.gather(
            *(register("school", token, ANSWERS, ["Terms"], "192.0.2.9", "Firefox") for _ in range(8))
        )

    names = {claim.seat_name for claim in world.run(many())}
    assert names == {"ev1-01"}
    card = world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token))
    assert card.secret and card == world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token))
    assert len(world.run(world.events.list_registrations(world.olga, "school"))) == 1
    later = world.claim(token=token, answers={"name": "Other"}, accepted=[])
    assert later.seat_name == "ev1-01", "what is sent again is not looked at again"


def test_another_tab_of_a_browser_that_has_a_seat_leads_to_it(world: EventWorld) -> None:
    world.make_event(seats=5)
    first = world.claim()
    again = world.claim(who=world.seat(first.seat_name))
    assert again.seat_name == first.seat_name and again.cookie == ""
    with world.store.read() as tx:
        assert len(tx.list_seats(1, (SeatState.TAKEN,))) == 1


def test_somebody_else_who_is_signed_in_gets_a_seat_of_their_own(world: EventWorld) -> None:
    world.make_event(seats=2)
    world.make_event("second", seats=2)
    other = world.claim("second")
    for who in (world.identify("alice"), world.seat(other.seat_name)):
        assert world.claim(who=who).seat_name.startswith("ev1-")


def test_who_waits_gets_the_next_seat_before_anybody_new(world: EventWorld) -> None:
    world.make_event(seats=1)
    world.claim()
    tokens = [make_form_token() for _ in range(2)]
    assert [world.claim(token=token).position for token in tokens] == [1, 2]
    world.run(world.events.seats.add(world.olga, "school", 1))
    world.turn()
    assert world.claim().position == 2, "new ones wait behind"
    found = world.run(world.events.claims.find_claim("school", tokens[0]))
    assert found == Claim("ev1-02"), "it is told, and nobody is signed in by looking"
    claim = world.claim(token=tokens[0])
    assert claim.seat_name == "ev1-02" and claim.cookie
    card = world.run(world.events.claims.get_card(world.seat("ev1-02"), "school", tokens[0]))
    assert card.secret
    assert world.claim(token=tokens[1]).position == 1


def test_a_removed_seat_goes_to_nobody(world: EventWorld) -> None:
    world.make_event(seats=1)
    token = make_form_token()
    name = world.claim(token=token).seat_name
    world.run(world.events.seats.remove(world.olga, "school", name))
    with pytest.raises(Conflict):
        world.claim(token=token)
    world.turn()
    with pytest.raises(Conflict):
        world.claim(token=token)
    assert world.claim().position == 1, "and who had it does not wait for another"


@pytest.mark.parametrize(
    ("answers", "accepted", "field"),
    [
        ({"level": "low"}, ["Terms"], "name"),
        ({"name": " ", "level": "low"}, ["Terms"], "name"),
        ({"name": "A", "level": "middle"}, ["Terms"], "level"),
        ({"name": "A\nB"}, ["Terms"], "name"),
        ({"name": "x" * 201}, ["Terms"], "name"),
        ({"name": "A"}, [], "accept-0"),
        ({"name": "A"}, ["Other"], "accept-0"),
    ],
)
def test_a_form_that_is_not_complete_takes_no_seat(
    world: EventWorld, answers: dict[str, str], accepted: list[str], field: str
) -> None:
    world.make_event(seats=1)
    with pytest.raises(Invalid) as caught:
        world.claim(answers=answers, accepted=accepted)
    assert caught.value.field == field
    assert world.claim(answers={"name": "A"}).seat_name == "ev1-01"


@pytest.mark.parametrize("token", ["", "short", "x" * 42, "x" * 44, "ä" * 43, "../" + "x" * 40])
def test_a_form_token_is_one_of_ours(world: EventWorld, token: str) -> None:
    world.make_event(seats=1)
    with pytest.raises(Invalid):
        world.run(world.events.claims.register("school", token, ANSWERS, ["Terms"], "", ""))


def test_when_an_event_takes_nobody(world: EventWorld) -> None:
    world.make_event(seats=3, opened=False)
    with pytest.raises(NotFound):
        world.claim()  # a draft does not exist
    world.run(world.events.open(world.olga, "school"))
    token = make_form_token()
    world.claim(token=token)
    world.run(world.events.close(world.olga, "school"))
    with pytest.raises(Conflict):
        world.claim()
    assert world.claim(token=token).seat_name == "ev1-01", "who is in stays in"
    world.run(world.events.end(world.olga, "school"))
    with pytest.raises(Conflict) as caught:
        world.claim()
    assert "ended" in caught.value.message
    with pytest.raises(NotFound):
        world.claim("no-such-event")


def test_what_was_accepted_is_recorded_with_time_address_and_wording(world: EventWorld) -> None:
    event = world.make_event(seats=2)
    world.claim()
    changed = replace(SETTINGS, texts=(("Terms", "Other words."),))
    world.run(world.events.change(world.olga, "school", "S", event.begins, event.ends, changed))
    world.claim()
    one, two = world.run(world.events.list_registrations(world.olga, "school"))
    assert one.address == "192.0.2.9" and one.at.tzinfo is not None and one.answers == ANSWERS
    assert len(one.accepted["Terms"]) == 64 and one.accepted != two.accepted


def test_a_seat_from_a_printed_sheet_is_taken_by_signing_in(world: EventWorld) -> None:
    world.make_event(seats=2, settings=replace(SETTINGS, registration=False))
    with pytest.raises(Conflict):
        world.claim()
    made = world.run(world.events.seats.renew_secrets(world.olga, "school"))
    assert [one.name for one in made] == ["ev1-01", "ev1-02"]
    sign_in = world.events.claims.sign_in
    for name, secret in (("ev1-01", made[1].secret), ("ev1-01", ""), ("alice", made[0].secret), ("ev1-09", "x")):
        with pytest.raises(NotSignedIn):
            world.run(sign_in("school", name, secret, "192.0.2.1", "Firefox"))
    typed = made[0].secret.upper().replace("-", " ")
    claim = world.run(sign_in("school", " EV1-01 ", typed, "192.0.2.2", "Firefox"))
    assert world.accounts.authenticate(claim.cookie, "").user_name == "ev1-01"
    with pytest.raises(Forbidden):
        world.run(world.events.desk.start(world.seat("ev1-01"), "school", "shell"))
    assert world.claim(who=world.seat("ev1-01")).seat_name == "ev1-01"
    assert world.run(world.events.desk.start(world.seat("ev1-01"), "school", "shell")).user_name == "ev1-01"


def test_guessing_a_secret_ends_after_a_few(world: EventWorld) -> None:
    world.make_event(seats=1)
    secret = world.run(world.events.seats.renew_secrets(world.olga, "school"))[0].secret
    for _ in range(5):
        with pytest.raises(NotSignedIn):
            world.run(world.events.claims.sign_in("school", "ev1-01", "aaaa", "192.0.2.1", ""))
    with pytest.raises(TooMany):
        world.run(world.events.claims.sign_in("school", "ev1-01", secret, "192.0.2.1", ""))
    assert world.run(world.events.claims.sign_in("school", "ev1-01", secret, "192.0.2.2", "")).cookie


def test_a_seat_of_another_event_opens_nothing_here(world: EventWorld) -> None:
    world.make_event("one", seats=1)
    world.make_event("two", seats=1)
    secret = world.run(world.events.seats.renew_secrets(world.olga, "two"))[0]
    with pytest.raises(NotSignedIn):
        world.run(world.events.claims.sign_in("one", secret.name, secret.secret, "192.0.2.1", ""))
    who = world.seat(world.claim("two").seat_name)
    for attempt in (
        world.events.claims.get_card(who, "one", make_form_token()),
        world.events.desk.view(who, "one"),
        world.events.desk.start(who, "one", "shell"),
        world.events.desk.archive(who, "one"),
        world.events.desk.put(who, "one", "a", b"", upload="a", offset=0, last=True),
    ):
        with pytest.raises(NotFound):
            world.run(attempt)


def test_a_new_secret_ends_the_old_one_and_its_sign_ins(world: EventWorld) -> None:
    world.make_event(seats=1)
    token = make_form_token()
    claim = world.claim(token=token)
    card = world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token))
    new = world.run(world.events.seats.renew_secrets(world.olga, "school", ["ev1-01"]))[0].secret
    with pytest.raises(NotSignedIn):
        world.accounts.authenticate(claim.cookie, "")
    with pytest.raises(NotSignedIn):
        world.run(world.events.claims.sign_in("school", "ev1-01", card.secret, "192.0.2.1", ""))
    with pytest.raises(Conflict):
        world.claim(token=token)  # the form lets in no more either
    assert world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token)).secret == ""
    assert world.run(world.events.claims.sign_in("school", "ev1-01", new, "192.0.2.1", "")).cookie
    assert world.run(world.events.seats.renew_secrets(world.olga, "school")) == [], "a taken one is left alone"


def test_a_locked_participant_stays_out(world: EventWorld) -> None:
    world.make_event(seats=1)
    token = make_form_token()
    world.claim(token=token)
    card = world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token))
    world.run(world.accounts.lock_user(world.identify("root-of-all"), "ev1-01"))
    assert world.accounts.get_user("ev1-01").state is UserState.LOCKED
    with pytest.raises(Conflict):
        world.claim(token=token)
    with pytest.raises(NotSignedIn):
        world.run(world.events.claims.sign_in("school", "ev1-01", card.secret, "192.0.2.1", ""))


def test_no_secret_is_in_the_database(world: EventWorld) -> None:
    world.make_event(seats=3)
    token = make_form_token()
    claim = world.claim(token=token)
    secrets = [token, claim.cookie]
    secrets += [world.run(world.events.claims.get_card(world.seat("ev1-01"), "school", token)).secret]
    secrets += [one.secret for one in world.run(world.events.seats.renew_secrets(world.olga, "school"))]
    text = "account,password\nold7,a secret of theirs\n"
    world.run(world.events.seats.import_list(world.olga, "school", text))
    secrets.append("a secret of theirs")
    for path in world.store.path.parent.iterdir():
        if path.is_file():
            data = path.read_bytes()
            for secret in secrets:
                assert secret.encode() not in data and secret.replace("-", "").encode() not in data


def test_an_imported_list_lets_its_people_in(world: EventWorld) -> None:
    world.make_event(seats=0, settings=EventSettings())
    text = "account,host,path,port,vncport,password\nguest01,h,/g/1,443,5901,Pass word-1\nguest02,h,/g/2,443,5902,abcdefgh\n"
    assert world.run(world.events.seats.import_list(world.olga, "school", text)) == ["guest01", "guest02"]
    world.turn()
    assert sorted(world.machine.made) == ["guest01", "guest02"]
    assert world.run(world.events.claims.sign_in("school", "guest01", "Pass word-1", "192.0.2.1", "")).cookie
    with pytest.raises(NotSignedIn):
        world.run(world.events.claims.sign_in("school", "guest02", "ABCDEFGH", "192.0.2.1", ""))


@pytest.mark.parametrize(
    "text",
    [
        "", "account,password\n", "account,password\nroot,longenough\n", "account,password\nalice,longenough\n",
        "account,password\n../a1,longenough\n", "account,password\ng1,short\n", "name,secret\ng1,longenough\n",
        "account,password\ng1,longenough\ng1,longenough\n", 'account,password\n"g1,longenough\n',
        "account,password\n" + "".join(f"g{n},longenough\n" for n in range(201)),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_list_that_is_wrong_adds_nothing(world: EventWorld, text: str) -> None:
    world.make_event(seats=0)
    with pytest.raises(PorticoError):
        world.run(world.events.seats.import_list(world.olga, "school", text))
    assert world.run(world.events.seats.list_seats(world.olga, "school")) == []


def test_an_import_takes_no_present_user(world: EventWorld) -> None:
    world.add_user("dora1")
    world.make_event(seats=0)
    with pytest.raises(Conflict):
        world.run(
            world.events.seats.import_list(world.olga, "school", "account,password\ng1,longenough\ndora1,longenough\n")
        )
    assert world.run(world.events.seats.list_seats(world.olga, "school")) == []


def test_lists_hold_no_formula(world: EventWorld) -> None:
    world.make_event(seats=6)
    for evil in ("=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "  =1+1"):
        world.claim(answers={"name": evil})
    text = world.run(world.events.seats.export_seats(world.olga, "school"))
    lines = text.splitlines()
    assert lines[0] == "seat,state,registered,address,Name,Level,accepted Terms" and len(lines) == 7
    assert "'=cmd" in text and ",'+1," in text and ",'-1," in text and ",'@SUM(1)," in text and "'=1+1" in text
    assert lines[6].startswith("ev1-06,free")
    listed = world.run(world.events.seats.export_list(world.olga, "school")).splitlines()
    assert listed[0] == "account,host,path,port,vncport,password"
    assert listed[1] == "ev1-01,localhost,/e/school/sign-in,8000,,"
    name, *_, secret = listed[6].split(",")
    assert world.run(world.events.claims.sign_in("school", name, secret, "192.0.2.1", "")).cookie


def test_secrets_are_random_easy_to_type_and_salted_with_the_seat() -> None:
    made = {seat_secrets.make_secret() for _ in range(200)}
    assert len(made) == 200 and all(len(one) == 19 and not set(one) & set("lo01") for one in made)
    one, token = made.pop(), make_form_token()
    assert seat_secrets.hash_secret("ev1-01", one) != seat_secrets.hash_secret("ev1-02", one)
    derived = {seat_secrets.derive_secret(t, e, n) for t in (token, token[::-1]) for e in (1, 2) for n in ("a", "b")}
    assert len(derived) == 8
    for stored in (None, "", "sha256:", one):
        assert not seat_secrets.verify_secret("ev1-01", "", stored)
        assert not seat_secrets.verify_secret("ev1-01", one, stored)


def test_the_waiting_list_has_an_end(world: EventWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.events.claims.WAITING_MAX", 2)
    world.make_event(seats=0)
    assert [world.claim().position for _ in range(2)] == [1, 2]
    with pytest.raises(TooMany):
        world.claim()


def test_a_waiting_one_is_not_served_after_the_end(world: EventWorld) -> None:
    world.make_event(seats=0)
    token = make_form_token()
    world.claim(token=token)
    world.run(world.events.end(world.olga, "school"))
    with pytest.raises(Conflict):
        world.claim(token=token)
    assert world.run(world.events.get_event(world.olga, "school")).summary["waited in vain"] == 1
