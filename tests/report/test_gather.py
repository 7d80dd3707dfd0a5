import math
from collections.abc import Callable

import pytest

from backflip.core.records import Judged, Metric, Pair, Prompt, Rater, Sample, Vote
from backflip.report import ReportData, gather
from backflip.store import Store


def test_the_headline_figures_are_those_of_the_newest_round(gathered: Callable[..., ReportData]) -> None:
    data = gathered()

    assert data.final is not None
    assert data.final.win_rate is not None
    assert (data.final.round, data.final.prompts) == (3, 25)
    assert (data.final.win_rate.value, data.final.win_rate.low) == pytest.approx((0.72, 0.675))
    assert [c.round for c in data.monitor] == [1, 2, 3]


def test_versions_start_at_the_untouched_model_and_bear_the_newest_score(gathered: Callable[..., ReportData]) -> None:
    versions = gathered().versions

    assert [v.number for v in versions] == [0, 1, 2, 3]
    assert [v.kl.value for v in versions if v.kl] == [0.0, 3.9, 6.6, 8.1]
    assert [v.proxy.value for v in versions if v.proxy] == [0.02, 0.83, 1.44, 1.71]
    assert [v.utility.value for v in versions if v.utility] == [0.9, 1.21, 1.42, 1.5]


def test_an_attribute_has_risen_when_its_interval_lies_above_zero(gathered: Callable[..., ReportData]) -> None:
    final = gathered().final

    assert final is not None
    assert {a.name for a in final.attributes if a.risen} == {"warmth", "form", "once", "finished"}


def test_shares_of_the_gain_are_weight_times_gain_over_their_sum(gathered: Callable[..., ReportData]) -> None:
    # weights 1, 0.8, 1.2, 0.7, 0.6, 0.5 times gains 0.31, 0.02, 0.24, 0.16, 0.12, -0.01 sum to 0.793
    final = gathered().final

    assert final is not None
    shares = {a.name: a.share for a in final.attributes}
    assert shares["warmth"] == pytest.approx(0.31 / 0.793)
    assert sum(s for s in shares.values() if s is not None) == pytest.approx(1.0)


def test_steps_are_numbered_through_the_rounds(gathered: Callable[..., ReportData]) -> None:
    steps = gathered(rounds=2).steps

    assert [s.number for s in steps] == list(range(1, 25))
    assert (steps[12].round, steps[12].tick) == (2, 1)
    assert "objective/kl" in steps[0].values


def test_twenty_pairs_are_drawn_from_the_final_prompts_by_seed(store: Store, stored: Callable[..., ReportData]) -> None:
    data = stored()
    prompts = {p.text for p in store.prompts("final")}

    assert data.side_by_side_split == "final"
    assert len({s.prompt for s in data.side_by_side}) == 20
    assert {s.prompt for s in data.side_by_side} <= prompts
    assert gather(store).side_by_side[0].prompt == data.side_by_side[0].prompt
    with store.begin() as tx:
        tx.set_note("seed", "8")
    assert [s.prompt for s in gather(store).side_by_side] != [s.prompt for s in data.side_by_side]


def test_both_answers_are_to_the_prompt_they_stand_under(store: Store, stored: Callable[..., ReportData]) -> None:
    data = stored(rounds=2)
    by_text = {p.text: p.id for p in store.prompts("final")}
    answers = store.samples(purpose="final")

    for shown in data.side_by_side:
        mine = [s for s in answers if s.prompt_id == by_text[shown.prompt]]
        assert shown.reference.text in {s.text for s in mine if s.policy == "reference"}
        assert shown.policy.text in {s.text for s in mine if s.policy == "policy-r2"}


def test_without_a_judge_answers_bear_no_utility(gathered: Callable[..., ReportData]) -> None:
    data = gathered(judged=False)

    assert data.baseline is None
    assert all(s.policy.utility is None and s.policy.attributes == {} for s in data.side_by_side)


def test_the_baseline_is_the_spread_of_the_untouched_models_answers(
    store: Store, stored: Callable[..., ReportData]
) -> None:
    stored(rounds=1)

    def by_index(prompt: Prompt, sample: Sample) -> Judged | None:
        value = sample.index + (10 if sample.purpose == "rate" else 0)
        return Judged(value=float(value if sample.policy == "reference" else 100))

    baseline = gather(store, judge=by_index).baseline

    # 16 monitor prompts, 4 answers each, utilities 0, 1, 2, 3: variance 1.25 * 64 / 63
    assert baseline is not None
    assert baseline.answers == 64
    assert baseline.sd == pytest.approx(math.sqrt(1.25 * 64 / 63))
    assert baseline.train_mean == pytest.approx(11.5)


def test_lengths_are_those_of_the_newest_policy_and_the_reference(
    store: Store, stored: Callable[..., ReportData]
) -> None:
    before, after = stored(rounds=2).lengths

    assert (before.policy, after.policy) == ("reference", "policy-r2")
    assert sorted(after.tokens) == sorted(s.length for s in store.samples(purpose="final", policy="policy-r2"))


def test_timing_follows_the_order_of_the_steps(gathered: Callable[..., ReportData]) -> None:
    assert list(gathered(rounds=1).timing[0].seconds) == ["sample", "rate", "fit", "optimise", "measure"]


@pytest.mark.parametrize("step", ["sample", "rate", "fit", "optimise", "measure"])
def test_a_run_can_be_read_after_any_step(gathered: Callable[..., ReportData], step: str) -> None:
    data = gathered(rounds=1, last_step=step)

    assert bool(data.fits) == (step in ("fit", "optimise", "measure"))
    assert bool(data.steps) == (step in ("optimise", "measure"))
    assert (data.final is not None) == (step == "measure")
    assert data.rounds_done == (step == "measure")


def test_an_empty_store_can_be_read(store: Store) -> None:
    data = gather(store)

    assert (data.counts.samples, data.versions, data.side_by_side, data.final) == (0, (), (), None)


def test_people_are_not_called_simulated(gathered: Callable[..., ReportData]) -> None:
    data = gathered(simulated=False)

    assert (data.simulated, data.judged_by) == (False, "people")
    assert data.people[-1].win_rate.value == pytest.approx(0.64)


def test_only_the_folder_of_the_base_model_is_named(gathered: Callable[..., ReportData]) -> None:
    assert gathered(rounds=1, last_step="sample").base_model == "smollm2-135m"


def test_a_metric_that_is_not_a_number_reaches_the_reader(store: Store, stored: Callable[..., ReportData]) -> None:
    stored(rounds=1)
    with store.begin() as tx:
        tx.add_metrics([Metric(round=1, step="optimise", tick=12, name="loss/value_avg", value=math.nan)])

    assert math.isnan(gather(store).steps[-1].values["loss/value_avg"])


def test_rater_rows_count_votes_in_force(store: Store) -> None:
    # Ada: a on pair 1 (left), then a tie on pair 2; b on pair 2, taken back. Bo: b on pair 1 (shown left), skip on 2.
    with store.begin() as tx:
        tx.start_round(1, "reference", 0.0)
        tx.add_prompts([Prompt(id="p", split="train", text="?")])
        answer = {"round": 1, "purpose": "rate", "prompt_id": "p", "policy": "reference", "ended": True, "length": 3}
        tx.add_samples(
            [Sample(id=i, index=k, text="x", artefact="f", row=k, **answer) for k, i in enumerate("st")]  # type: ignore[arg-type]
        )
        tx.add_pairs(
            [
                Pair(id=i, round=1, stream="fit", prompt_id="p", sample_a="s", sample_b="t", policy="reference")
                for i in ("1", "2")
            ]
        )
        tx.add_raters([Rater(id=n, kind="person", name=n) for n in ("Ada", "Bo")])
        for key, pair, rater, choice, shown, took, retracts in (
            ("k1", "1", "Ada", "a", "ab", 2.0, None),
            ("k2", "2", "Ada", "b", "ab", 9.0, None),
            ("k3", "2", "Ada", "retract", "ab", 0.0, "k2"),
            ("k4", "2", "Ada", "tie", "ab", 4.0, None),
            ("k5", "1", "Bo", "b", "ba", 3.0, None),
            ("k6", "2", "Bo", "skip", "ab", 5.0, None),
        ):
            vote = {"key": key, "pair_id": pair, "rater_id": rater, "choice": choice, "shown": shown}
            tx.cast([Vote(**vote, latency_s=took, at=0.0, retracts=retracts)])  # type: ignore[arg-type]

    ada, bo = gather(store).raters

    assert (ada.name, ada.votes, ada.ties, ada.skips, ada.retracted) == ("Ada", 2, 1, 0, 1)
    assert (ada.left, ada.latency_s, ada.compared, ada.agreed) == (1.0, 3.0, 1, 0)
    assert (bo.name, bo.votes, bo.ties, bo.skips, bo.retracted) == ("Bo", 1, 0, 1, 0)
    assert (bo.left, bo.latency_s, bo.compared, bo.agreed) == (1.0, 4.0, 1, 0)
