"""Who sees what: nothing without an invitation, nothing after a revocation, the owner's page only the owner."""

from collections.abc import Callable

from browsing import Served, invite, join
from playwright.sync_api import BrowserContext, expect

PAGES = ["/", "/rate", "/rank", "/demonstrate", "/chat", "/progress", "/owner"]
QUESTIONS = [
    "/api/me", "/api/pairs", "/api/rankings", "/api/demonstration", "/api/progress", "/api/samples?round=1&tick=0",
    "/api/clips/r1/rate/reference/train-00/0", "/api/owner/raters", "/api/owner/guidelines",
    "/api/owner/export?form=jsonl",
]  # fmt: skip

DEEDS = {
    "/api/votes": {"key": "12345678", "pair": "r1/00", "choice": "left", "latency_s": 1},
    "/api/flags": {"key": "12345678", "sample": "r1/rate/reference/train-00/0"},
    "/api/chat": {"messages": [{"role": "user", "content": "we love tea"}]},
    "/api/thumbs": {"key": "12345678", "sample": "r1/rate/reference/train-00/0", "up": True},
    "/api/owner/invites": {"name": "Eve"},
    "/api/owner/guidelines": {"text": "Eve was here"},
}


def test_an_uninvited_visitor_sees_nothing(served: Served, person: Callable[..., BrowserContext]):
    context = person(calm=True)
    page = context.new_page()
    for path in PAGES:
        page.goto(f"{served.url}{path}")
        expect(page.get_by_role("heading")).to_have_text("This page is for people who were invited")
        assert page.locator("nav").count() == 0
        assert "tea" not in page.content()
    for path in QUESTIONS:
        answer = context.request.get(f"{served.url}{path}")
        assert answer.status == 401, path
        assert "tea" not in answer.text()
    for path, body in DEEDS.items():
        assert context.request.post(f"{served.url}{path}", data=body).status == 401, path


def test_a_link_works_once_and_leaves_no_secret_in_the_address(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    link = invite(owner, served, "Ada")
    page = join(person(), link)
    expect(page.locator("#pair")).to_be_visible()

    assert page.url == f"{served.url}/rate"
    second = person(calm=True)
    assert second.new_page().goto(link).status in (401, 403, 404, 410)
    assert second.cookies() == []


def test_a_revoked_rater_is_out_at_once(served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]):
    rater = join(person(calm=True), invite(owner, served, "Ada"))
    expect(rater.locator("#pair")).to_be_visible()
    page = owner.new_page()
    page.goto(f"{served.url}/owner")
    page.get_by_role("button", name="Revoke Ada").click()
    page.locator("#sure-yes").click()
    expect(page.locator("#status")).to_have_text("Revoked.")
    rater.keyboard.press("ArrowLeft")
    expect(rater.locator("#status")).to_contain_text("You are signed out")
    rater.reload()
    expect(rater.get_by_role("heading")).to_have_text("This page is for people who were invited")

    with served.store() as store:
        assert store.votes() == []


def test_a_rater_is_not_shown_the_owners_page(
    served: Served, owner: BrowserContext, person: Callable[..., BrowserContext]
):
    context = person(calm=True)
    page = join(context, invite(owner, served, "Ada"))

    assert page.get_by_role("link", name="Owner").count() == 0
    assert page.goto(f"{served.url}/owner").status == 403
    assert context.request.get(f"{served.url}/api/owner/raters").status == 403
