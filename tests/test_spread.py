from core.evidence import Outcome
from core.report.spread import spread


def ran(seed: int, bpb: float | None, device: str = "GPU-a") -> Outcome:
    return Outcome(
        run=f"{device} {seed}",
        mutant="base",
        seed=seed,
        status="finished" if bpb else "crashed",
        val_bpb=bpb,
        device=device,
    )


def test_each_run_has_a_line_and_each_device_with_two_of_them_a_spread():
    lines = spread([
        ran(1, 1.22),
        ran(0, 1.2),
        ran(2, None),
        ran(0, 1.3, "GPU-b"),
    ])

    assert lines == [
        "seed     0  val_bpb 1.20000",
        "seed     1  val_bpb 1.22000",
        "mean        val_bpb 1.21000, sd 0.01414 on GPU-a",
        "seed     0  val_bpb 1.30000",
    ]
