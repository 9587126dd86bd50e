"""The sentences of a check: the only place where notes become words."""

from collections.abc import Iterable, Sequence

from reproduce.errors import few
from reproduce.harness.plan.model import Level
from reproduce.harness.verdict import notes, stats
from reproduce.harness.verdict.labels import ClaimStatus, IntervalKind, Tendency, Verdict
from reproduce.harness.verdict.notes import Note

UNDECIDED = "nothing is known about the spread over seeds, so this decides nothing; SEEDS=3 can decide it"
"""Holds for one seed per side whatever its difference: the test sets' known error says nothing about seeds."""

INTERVALS: dict[IntervalKind, str] = {
    "seeds": "the mean of our seeds on this test set, 90%",
    "seeds, corrected": "the mean of our seeds on this test set, at the level that Holm's correction leaves",
    "test set": "our one seed's test set, not the spread over seeds, 90%",
    "new seeds": "new seeds of unchanged code, 99% over all cells together",
    "same seed": "the recorded seed under other arithmetic, 99% over all cells together",
}

PUBLIC: Level = "public weights"
LEVELS: dict[Level, str] = {
    PUBLIC: "the authors' public checkpoints through our evaluations",
    "own training": "our pretraining through our evaluation",
}

NUM_SHOWN_RUNS = 3
"""Runs that a sentence names."""

UNCHANGED: dict[IntervalKind, str] = {
    "new seeds": "new seeds of unchanged code fall ({} recorded seeds)",
    "same seed": "this seed falls on any machine if nothing has changed (recorded under {} kinds of arithmetic)",
}
RECORDED_PLACES = {Verdict.WITHIN: "Inside", Verdict.BETTER: "Above", Verdict.WORSE: "Below"}


def sentences(given: Iterable[Note]) -> str:
    """Return notes as one paragraph, in their order."""
    return " ".join(map(sentence, given))


def sentence(note: Note) -> str:
    """Return one note as a sentence that ends with a full stop."""
    return f"{_sentence(note).rstrip('.')}."


def _sentence(note: Note) -> str:  # noqa: C901  # one case for each note
    match note:
        case notes.StatedReason(text):
            return text
        case notes.PublicWeights(address):
            return f"Public weights exist: {address}"
        case notes.NoPublicWeights(reason):
            return f"This row has no public weights (models/zoo/released.yaml): {reason}"
        case notes.RunFailure():
            return _run_failure(note)
        case notes.MissingResults(runs):
            return f"No result yet: {'; '.join(runs)}"
        case notes.CollapsedAsPrinted(failure):
            return f"As in the paper, the training does not converge: {_run_failure(failure)}"
        case notes.HastyDetector(failure, least):
            return (
                f"{failure.run} was stopped after {failure.patience_epochs:g} epochs (collapse.patience_epochs), and a "
                f"failure as the paper means it shows after {least:g}: restore the setting, and train again"
            )
        case notes.SomeSeedsCollapsed(num_collapsed, num_seeds):
            return f"In the paper the training fails; here {num_collapsed} of {num_seeds} seeds did"
        case notes.ConvergedUnlikePaper():
            return "In the paper the training fails to converge; here it converged"
        case notes.OtherDataset(run, source, paper_source):
            return f"{run} reads {source}, but the paper used {paper_source}: there is nothing to compare with"
        case notes.OtherImages():
            return "These are not this scale's own images: there is nothing to compare with"
        case notes.NothingRecorded():
            return "No number is recorded for this cell yet"
        case notes.RecordedInterval(verdict, kind, num_recorded):
            return f"{RECORDED_PLACES[verdict]} the interval where {UNCHANGED[kind].format(num_recorded)}"
        case notes.NoticeableFall(points):
            return noticeable(points)
        case notes.CheckpointMean(num_cells, num_recorded):
            return f"The mean of {num_cells} cells of one checkpoint, by seed ({num_recorded} recorded seeds)"
        case notes.CellsWithoutNumber(cells, num_cells):
            return f"{len(cells)} of the {num_cells} cells have no number: {_some(cells)}"
        case notes.WelchTest(p_value):
            return f"Welch's test of equal means: p = {p_value:.3f}"
        case notes.ConfigChanged():
            return "The config has changed since the recording"
        case notes.RecordedMatch():
            return "The recorded seeds among these give their recorded numbers again"
        case notes.RecordedMismatch(seed, recorded):
            return f"Seed {seed} gave {recorded:.2f} when it was recorded, on another machine or with other code"
        case notes.MarginTest():
            return _margin_test(note)
        case notes.ShareReference():
            return "The other rows are compared as shares of this number; nothing is compared with the number itself"
        case notes.NoShareReference(row):
            return f"This number is compared as a share of {row}, which has no number yet"
        case notes.ComparedAsShare(row, unit, ours, reference):
            return f"The share of {row} is compared, not the {unit} ({ours:.3g} and {reference:.3g})"
        case notes.NoMarginBefore():
            return "No margin was recorded before the result existed"
        case notes.MarginNarrowed(before):
            return f"The margin was narrowed after the result existed: it was {before} points"
        case notes.MarginWidened(now, before):
            return f"The margin was widened to {now} points after the result existed; the earlier {before} is used"
        case notes.EditedSince(commit, edits):
            return f"Edited after the result existed, and judged as at the result's commit {commit}: {'; '.join(edits)}"
        case notes.MeanOfRuns(num_printed, num_ours):
            return f"The printed number is a mean of {num_printed} runs, ours of {num_ours}"
        case notes.BestVariant(means, metric, best):
            others = ", ".join(f"{variant} ({mean:.2f})" for variant, mean in means)
            return f"Of {others}, {best} has the best {metric} and is used, as the authors did"
        case notes.OtherSeeds(values, judged):
            what = (
                "Judged with them are seeds that were not requested" if judged else "Seeds that were not requested gave"
            )
            return f"{what}: {', '.join(f'{seed} ({value:.2f})' for seed, value in values)}"
        case notes.NoSpread(num_seeds):
            return (
                f"But {num_seeds} pretrainings gave this number to the last digit, which chance does not do: one of "
                "them may be a copy, or the seed changes nothing"
            )
        case notes.Misprint(printed, source):
            return f"Erratum of the paper, which prints {printed:g}: {source}"
        case notes.HolmCorrection(num_cells, p_value, (low, high)):
            return (
                f"But not after Holm's correction over {num_cells} cells (p = {p_value:.3f}): at its level the "
                f"interval [{low:.2f}, {high:.2f}] straddles an edge"
            )
        case notes.ControlComparison():
            return _control_comparison(note)
        case notes.EmptyInterval():
            return _empty_interval(note)
        case notes.CanaryResult():
            return _canary(note)
        case notes.DifferenceSign(status, num_seeds):
            places = {ClaimStatus.HOLDS: "is above zero", ClaimStatus.CONTRADICTED: "is below zero"}
            place = places.get(status, "includes zero")
            return f"The 90% interval of the difference {place}. {num_seeds} seeds per side (Welch)"
        case notes.OneSeedDifference(points, tendency):
            return f"One seed per side: {points:+.1f} points, {_tendency(tendency)}; {UNDECIDED}"
        case notes.WidestDifference():
            return _widest_difference(note)
        case notes.Convergence():
            return _convergence(note)
        case notes.CollapsedUnexpectedly(failure, one_seed):
            text = _run_failure(failure).rstrip(".")
            return f"One seed per side: {text}, {_tendency('wrong')}; {UNDECIDED}" if one_seed else text
        case notes.PublishedNetworks():
            return "Judged on the published networks, one training per side; the seeds are those of the evaluations"
        case notes.SameFirstSteps(num_runs, num_numbers):
            of_runs = "run" if num_runs == 1 else f"{num_runs} runs"
            return f"Same recipe: {num_numbers} numbers of the first steps of its {of_runs} equal the recorded ones"
        case notes.OtherFirstSteps():
            return _other_first_steps(note)
        case notes.FirstStepsNotCompared():
            return _first_steps_not_compared(note)
        case notes.NoRecordedFirstSteps(scale):
            return f"The recipe is not compared: no first steps of runs are recorded at scale {scale}"
    raise TypeError(f"no sentence for {type(note).__name__}: add a case to verdict/wording.py")


def status_text(status: str, tendency: str) -> str:
    """Return a claim's status and, if one seed per side leaves it undecided, which way it points."""
    return f"{status}, points the {tendency} way" if tendency else str(status)


def _run_failure(failure: notes.RunFailure) -> str:
    text = f"{failure.run} {failure.status}: {failure.message}".rstrip(".")
    return text if failure.requested else f"{text}. This seed was not requested, but a failure always counts"


def _margin_test(note: notes.MarginTest) -> str:
    several = note.num_seeds > 1
    if several:
        of = f", the means of {note.num_runs} runs," if note.num_runs > note.num_seeds else ""
        subject = f"The 90% interval of {note.num_seeds} seeds{of}"
    elif note.num_runs == 1:
        subject = "One seed"
    elif note.pretrained:
        subject = f"One seed, the mean of {note.num_runs} runs on its network,"
    else:
        subject = f"One number, the same in {note.num_runs} runs without randomness,"
    place = {
        Verdict.REPRODUCED: "lies inside the margin",
        Verdict.WITHIN: "is inside the margin",
        Verdict.BETTER: "lies above the margin",
        Verdict.WORSE: "lies below the margin",
        Verdict.INCONCLUSIVE: "straddles an edge of the margin"
        if several
        else "lies outside, but the test set's error reaches into the margin",
    }[note.verdict]
    more = "; more seeds would tell" if several and note.verdict == Verdict.INCONCLUSIVE else ""
    unit = f" {note.unit}" if note.unit else ""
    return f"{subject} {place} of {note.margin}{unit} around {note.expected:g}{more}"


def noticeable(points: float | None) -> str:
    """Return which fall a number would notice, as a sentence without its full stop."""
    if points is None:
        return "The recorded seeds spread so widely that it would notice no fall at all"
    return f"It would notice a fall of {points:.1f} points ({stats.POWER:.0%} probability)"


def _control_comparison(note: notes.ControlComparison) -> str:
    points = f"{note.points:+.1f} points from {note.control}"
    if note.lowest is not None:
        allowed = f"recorded seeds of unchanged code give at least {note.lowest:+.1f}"
        if note.lowest < 0:
            allowed = f"learning must beat it, although {allowed}"
        return f"{points}; {allowed}"
    match note.result:
        case "other images":
            return f"{points}; the required {note.bar:g} apply to the scale's own images"
        case "not beaten":
            return f"{points}; learning must beat it by more than {note.bar:g}"
        case "beaten":
            return f"It beats its control: {points}, more than {note.bar:g}"


def _empty_interval(note: notes.EmptyInterval) -> str:
    if note.points is not None:
        rest = f"the verdict rests on the control alone, {note.points:+.1f} points from {note.control}"
    else:
        rest = f"the control {note.control} has no number yet" if note.control else "no control is set here"
    return f"The recorded seeds spread so widely that their interval is [0, 100], which says nothing; {rest}"


def _canary(note: notes.CanaryResult) -> str:
    if note.state == "missing":
        why = (
            f"no result of {note.evaluation} on the authors' {note.checkpoint}"
            if note.checkpoint
            else f"tables/canaries.yaml lists none for {note.evaluation}"
        )
        why += "".join(f"; {phrase}" for phrase in note.refused)
        return f"Its canary is missing, so it does not count as reproduced: {why}"
    gave = "; ".join(
        f"{each.metric} {each.value:.2f}, printed {each.printed:g} (margin {each.margin:g})"
        for each in note.measurements
    )
    found = f"the authors' {note.checkpoint} (sha256 {', '.join(note.sha256)}) gave {gave}"
    if note.state == "disagreed":
        return f"But its canary disagrees, so the evaluation itself is in doubt: {found}"
    if note.state == "unverified":
        return (
            "Its canary is unverified, so it does not count as reproduced: no SHA-256 of the authors' file is known, "
            "so that this is theirs is only its name (fetch-weights prints the SHA-256 for models/zoo/released.yaml): "
            f"{found}"
        )
    return f"Its canary agreed: {found}"


def _widest_difference(note: notes.WidestDifference) -> str:
    within = note.points <= note.bound + stats.ROUNDING
    place = {
        ClaimStatus.HOLDS: "within",
        ClaimStatus.CONTRADICTED: "beyond, with its whole interval,",
        ClaimStatus.INCONCLUSIVE: "within" if within else "beyond, but its interval reaches within,",
    }[note.status]
    found = f"The widest difference is {note.points:.2f} points, {place} the bound of {note.bound}"
    if within and not note.one_seed:
        but = "" if note.status == ClaimStatus.HOLDS else "but "
        found += f"; {but}seeds spread so that differences of up to {note.reach:.2f} are possible (90% intervals)"
    return f"One seed each. {found}; {UNDECIDED}" if note.one_seed else found


def _convergence(note: notes.Convergence) -> str:
    if note.num_collapsed == note.num_seeds:
        every = f"Every seed of {note.fails} collapsed, none of {note.converges}"
        found = f"{note.fails} collapsed, {note.converges} did not" if note.tendency else every
    elif note.num_collapsed:
        found = f"{note.num_collapsed} of {note.num_seeds} seeds of {note.fails} collapsed"
    else:
        found = f"{note.fails} did not collapse"
    return f"One seed per side: {found}, {_tendency(note.tendency)}; {UNDECIDED}" if note.tendency else found


def _other_first_steps(note: notes.OtherFirstSteps) -> str:
    count = f" (the first of {note.num_differences} differences)" if note.num_differences > 1 else ""
    others = f". So did {_some(note.other_runs)}" if note.other_runs else ""
    return f"{note.run} took other first steps than recorded: {note.difference}{count}{others}"


def _first_steps_not_compared(note: notes.FirstStepsNotCompared) -> str:
    reasons = []
    if note.not_recorded:
        reasons.append(
            f"no first steps are recorded of {_some(note.not_recorded)} (recorded are those of seed 0 on the scale's "
            "own images, without overrides; none of clustering, nor of kNN and SVM on a trained trunk)"
        )
    if note.not_kept:
        reasons.append(f"results from before first steps were kept have none ({_some(note.not_kept)})")
    if note.input_only:
        reasons.append(f"on a GPU only the input and the rates are, and they are equal ({_some(note.input_only)})")
    equal = "; those of the other runs equal the recorded ones" if note.num_equal else ""
    return f"The recipe is not compared: {'; '.join(reasons)}{equal}"


def _some(runs: Sequence[str]) -> str:
    return few(runs, NUM_SHOWN_RUNS, separator="; ")


def _tendency(tendency: Tendency) -> str:
    return f"which points the {tendency} way" if tendency else "no more than its known error"
