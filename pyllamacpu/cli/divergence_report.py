"""A KL divergence as text: the lines of llama-perplexity's report."""

from __future__ import annotations

from collections.abc import Iterable

from pyllamacpu.evaluate.divergence import KLD_PERCENTILES, P_PERCENTILES, Divergence, percentiles
from pyllamacpu.evaluate.statistics import Estimate, mean

HEADER = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              "
    "Δp RMS            Same top p"
)
FEW = 100  # scored tokens from which the statistics are worth telling


def progress_row(done: int, d: Divergence) -> str:
    """The state after `done` windows."""
    rms, top = d.p_difference_rms.times(100.0), d.same_top_share.times(100.0)
    return (
        f"{done:4d}    {_both(d.ppl, '9.4f')}    {_both(d.ln_ppl_ratio, '10.5f')}"
        f"    {_both(d.mean_kld, '10.5f')}    {_both(rms, '6.3f')} %    {_both(top, '6.3f')} %"
    )


def report(d: Divergence) -> str:
    """Everything; of fewer than 100 scored tokens only a line that says so."""
    if d.kld.size < FEW:
        return f"\n{d.kld.size} scored tokens are too few for statistics; give a longer text"
    return "\n".join(["", *_perplexities(d), "", *_divergences(d), "", *_probabilities(d)])


def _perplexities(d: Divergence) -> Iterable[str]:
    rows = {
        "Mean PPL(Q)                   ": d.ppl,
        "Mean PPL(base)                ": d.ppl_base,
        "Mean ln(PPL(Q)/PPL(base))     ": d.ln_ppl_ratio,
        "Mean PPL(Q)/PPL(base)         ": d.ln_ppl_ratio.exp(),
        "Mean PPL(Q)-PPL(base)         ": d.ppl_difference,
    }
    lines = [f"{name}: {_both(value, '10.6f')}" for name, value in rows.items()]
    lines.insert(2, f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * d.correlation:6.2f}%")
    return ["====== Perplexity statistics ======", *lines]


def _divergences(d: Divergence) -> Iterable[str]:
    rows = percentiles(d.kld, KLD_PERCENTILES)
    lines = [f"{_percentile(name)} KLD: {value:10.6f}" for name, value in rows.items()]
    return ["====== KL divergence statistics ======", f"Mean    KLD: {_both(d.mean_kld, '10.6f')}", *lines]


def _probabilities(d: Divergence) -> Iterable[str]:
    rows = percentiles(100.0 * d.p_difference, P_PERCENTILES)
    lines = [f"{_percentile(name)} Δp: {value:6.3f}%" for name, value in rows.items()]
    average = mean(d.p_difference).times(100.0)
    rms, top = d.p_difference_rms.times(100.0), d.same_top_share.times(100.0)
    return [
        "====== Token probability statistics ======",
        f"Mean    Δp: {_both(average, '6.3f', '5.3f')} %",
        *lines,
        f"RMS Δp    : {_both(rms, '6.3f', '5.3f')} %",
        f"Same top p: {_both(top, '6.3f', '5.3f')} %",
    ]


def _percentile(name: str) -> str:
    known = {"max": "Maximum", "min": "Minimum", "50": "Median "}
    return known.get(name) or f"{float(name):4.1f}%  "


def _both(estimate: Estimate, form: str, error_form: str | None = None) -> str:
    return f"{estimate.value:{form}} ± {estimate.error:{error_form or form}}"
