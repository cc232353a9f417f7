"""Conducts the demo on a stack that is up: shows the tour, the bill and what to try next."""

from __future__ import annotations

from sandboxd.ctl.client import ApiError, connect
from sandboxd.dev.demo_options import DemoOptions, Ended
from sandboxd.dev.show import JsonShow, Show, TextShow
from sandboxd.dev.stack import DevStack
from sandboxd.dev.tour import FIRST_PROMPT, SECOND_PROMPT, Tour, TourError


async def conduct(stack: DevStack, options: DemoOptions) -> Ended:
    """Run the demo; the sandbox is terminated at the end, unless it shall be kept."""
    show: Show = JsonShow() if options.as_json else TextShow()
    show.say(f"The stack is up after {stack.start_seconds:.1f} s: API {stack.address}, Gemini CLI {stack.cli_version}.")
    show.say(_who_answers(stack))
    async with connect(stack.address, token=stack.renew_token()) as client:
        tour = Tour(client, show, model=options.model)
        failure = ""
        kept = ""
        try:
            failure = await _tour(tour, show, options)
        finally:
            if not options.keep:
                kept = await tour.finish()
    if not options.as_json and not failure:
        show.heading("what to try next")
        show.say(_next_steps(stack, options))
    problem = failure or (tour.problems[-1] if tour.problems else "")
    return Ended(problem=problem, broken=bool(failure), kept=kept)


async def _tour(tour: Tour, show: Show, options: DemoOptions) -> str:
    """Run the turns and show the bill; answers why the tour broke off, where it did."""
    failure = ""
    try:
        await tour.create()
        await (tour.turns(options.prompts) if options.prompts else _own_tour(tour, show))
    except (TourError, ApiError) as error:
        failure = str(error)
    except TimeoutError:
        failure = "a turn took too long"
    if not tour.sandbox:
        return failure
    try:
        # The bill comes in any case: what failed was paid, too.
        requests, total = await tour.ledger()
    except ApiError as error:
        return failure or f"the ledger does not answer: {error}"
    show.usage(requests=requests, total=total)
    show.end({"usage": {"requests": requests, "total": total}, "sandbox": tour.sandbox, "session": tour.session})
    return failure


async def _own_tour(tour: Tour, show: Show) -> None:
    show.heading("a prompt: the CLI thinks, runs a command, writes a file, answers")
    await tour.turns([FIRST_PROMPT])
    if tour.problems:
        raise TourError(f"The first turn failed: {tour.problems[-1]}.")
    show.heading("pause and resume")
    await tour.pause_and_resume()
    show.heading("the same session goes on")
    (turn,) = await tour.turns([SECOND_PROMPT])
    tour.prove(turn)
    show.heading("usage and cost")


def _who_answers(stack: DevStack) -> str:
    if stack.practice:
        return (
            "Neither GEMINI_API_KEY nor SANDBOXD_GEMINI_URL is set: a PRACTICE MODEL answers. "
            "It is a script, not Gemini, and its costs are list prices that nobody pays."
        )
    return f"The model API is {stack.gemini_url}."


def _next_steps(stack: DevStack, options: DemoOptions) -> str:
    lines = [
        "make run                      the same stack, staying up; then, in another terminal:",
        "  sandboxctl create           a sandbox of your own",
        "  sandboxctl chat SANDBOX     talk to it",
        "  sandboxctl usage            what it cost",
        'sandboxd demo --prompt "Write a haiku into haiku.txt" --output json',
    ]
    if stack.practice:
        lines.append("GEMINI_API_KEY=… sandboxd demo    the same with the real API")
    if options.keep:
        lines.insert(0, f"sandboxd dev --data-dir {stack.home.path}    goes on with this demo's sandbox")
    return "\n".join(lines)
