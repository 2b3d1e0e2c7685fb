"""Published tables refitted: a few rows carried here (tables/README.md names their sources), all of them where the
tables are."""

from pathlib import Path

import numpy as np
import pytest

from conf.errors import ConfigError
from launch.scaling.law import Law
from launch.scaling.overtraining import fit_downstream, fit_overtraining
from launch.scaling.reproduce import GADRE_SMALL, Check, check, report, reproduce
from launch.scaling.shapes import chinchilla_parameters, mpt_flops_per_token, open_lm_parameters
from launch.scaling.tables import Table, read_tables

CARRIED = Path(__file__).parent / "tables"
TABLES = Path(__file__).resolve().parents[4] / "shared/data/scaling"


def checks(path: Path) -> tuple[dict[str, Check], list[str]]:
    tables, notes = read_tables(path)
    found = [check(table, tables) for table in tables]
    return {one.what: one for made, _ in found for one in made}, notes + [note for _, odd in found for note in odd]


def test_carried_rows_give_the_published_numbers(capsys: pytest.CaptureFixture[str]):
    assert reproduce(CARRIED)
    shown = capsys.readouterr().out
    assert "0.2473 %" in shown
    assert "MISSED" not in shown
    assert "its published errors are those of open_lm_1b at 32x" in shown
    assert "no rows of rw-base-long-kaplan-kaplan-train" in shown


@pytest.mark.skipif(not TABLES.is_dir(), reason=f"the published tables are not at {TABLES}")
def test_all_published_tables_are_met():
    found, _ = checks(TABLES)
    assert [one.what for one in found.values() if not one.passes] == []
    assert len(found) >= 20
    for what, published in (("as Kaplan", 0.835), ("head counted", 0.706), ("short warm-up", 0.602)):
        assert found[f"a, {what}"].obtained == pytest.approx(published, abs=0.01)
    assert found["E"].obtained == pytest.approx(1.7839, abs=1e-3)  # of the 234 rows that this copy has


def test_counts_of_parameters_are_those_of_the_papers():
    assert open_lm_parameters(*(np.array([v]) for v in (4096.0, 32.0, 50432.0)))[0] == 6889410560
    assert chinchilla_parameters(*(np.array([v]) for v in (2688.0, 10752.0, 128.0, 22.0, 36.0)))[0] == pytest.approx(
        3.53e9, rel=1e-3
    )
    flops = mpt_flops_per_token("7b", 6658859008.0, 2048.0)
    assert flops == 6 * 6658859008 + 12 * 32 * 4096 * 2048
    assert mpt_flops_per_token("9b", 1.0, 1.0) is None


def gadre(tmp_path: Path, held: list[str]) -> tuple[dict[str, Check], list[str]]:
    """The carried rows in one file, the held-out ones in another."""
    small = (CARRIED / "gadre_redpajama_small.csv").read_text()
    (tmp_path / "small.csv").write_text(small)
    (tmp_path / "large.csv").write_text("\n".join([small.splitlines()[0], *held]) + "\n")
    return checks(tmp_path)


def test_held_out_rows_of_gadre_are_predicted_when_given(tmp_path: Path):
    """Large rows of our own making, 1 % above the law and 2 % above the error of the tasks: the check finds that."""
    head, *lines = (CARRIED / "gadre_redpajama_small.csv").read_text().splitlines()
    (small,) = read_tables(CARRIED / "gadre_redpajama_small.csv")[0]
    law = fit_overtraining(*small.numbers("N", "D", "loss_c4_val")).law
    columns = head.split(",")

    def made(arch: str, n: float, multiple: float, above: float, error: float) -> str:
        cells = dict(zip(columns, lines[0].split(","), strict=True))
        d, run = 20 * n * multiple, f"rpj-{arch}-{multiple}"
        loss = law.loss(n, d) * (1 + above)
        changed = {"run": run, "arch": arch, "N": n, "D": d, "chinchilla_multiple": multiple, "loss_c4_val": loss}
        return ",".join(str(value) for value in (cells | changed | {"err_17task": error}).values())

    fitted = made("open_lm_1b", 1439795200.0, 1.0, 0.0, 0.53)
    found, _ = gadre(
        tmp_path,
        [fitted, made("open_lm_1b", 1439795200.0, 32.0, 0.01, 0.5), made("open_lm_7b", 6889410560.0, 1.0, -0.02, 0.5)],
    )
    assert found["open_lm_1b at 32x: error of loss"].obtained == pytest.approx(100 * (1 - 1 / 1.01))
    assert found["open_lm_7b at 1x: error of loss"].obtained == pytest.approx(100 * (1 / 0.98 - 1))
    assert not found["open_lm_7b at 1x: error of loss"].passes
    loss, error = (
        np.append(v, last)
        for v, last in zip(
            small.numbers("loss_c4_val", "err_17task"), (law.loss(1439795200.0, 20 * 1439795200.0), 0.53), strict=True
        )
    )
    wanted = fit_downstream(loss, error).error(law.loss(6889410560.0, 20 * 6889410560.0))
    assert found["open_lm_7b at 1x: error of 17 tasks"].obtained == pytest.approx(100 * abs(wanted / 0.5 - 1), rel=1e-5)


def test_held_out_rows_without_the_fitted_ones_are_named(tmp_path: Path):
    text = (CARRIED / "gadre_redpajama_small.csv").read_text().splitlines()
    (tmp_path / "one.csv").write_text("\n".join(text[:2]) + "\n")
    found, notes = checks(tmp_path)
    assert found == {}
    assert "the law needs rows that are not there" in notes[0]
    assert GADRE_SMALL[1] in notes[0]


def test_chinchilla_points_of_a_known_law_miss_the_published_one(tmp_path: Path):
    """The table is read by its columns; the constants are those of its rows, not those hoped for."""
    law, rng = Law(1.9, 300.0, 900.0, 0.3, 0.4), np.random.default_rng(0)
    n, d = np.exp(rng.uniform(17, 24, 60)), np.exp(rng.uniform(21, 27, 60))
    lines = [f"{6 * a * b},{a},{b},{law.loss(a, b)}" for a, b in zip(n, d, strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["C,N,D,loss", *lines]) + "\n")
    found, notes = checks(tmp_path)
    assert found["E"].obtained == pytest.approx(1.9, abs=1e-3)
    assert "95 % intervals of its 60 rows: E 1.9" in notes[0]
    assert "60 of its 240 rows" in found["E"].basis
    assert not found["E"].passes


def test_damaged_rows_and_unknown_tables_are_named_and_not_fatal(tmp_path: Path):
    text = (CARRIED / "nanochat_isoflop_optima.csv").read_text().rstrip()
    (tmp_path / "nano.csv").write_text(
        f"{text}\nmatmul_with_head,1e18\nmatmul_with_head,1e18,x,1,1\nblocks_only,1e18,-3,1,1\n"
    )
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "odd.csv").write_bytes(b"\xff\xfe\x00")
    found, notes = checks(tmp_path)
    assert all(one.passes for one in found.values())
    assert len(found) == 3
    for said in (
        "nano.csv, line 14: 2 cells for 5 columns",
        "nano.csv, line 15: N_opt='x' is no number",
        "nano.csv, line 16: N_opt=-3 must be above 0",
        "other.csv: no known table; its columns are a, b",
        "empty.csv: no known table; its columns are none",
        "odd.csv: cannot be read",
    ):
        assert any(note.startswith(said) for note in notes), said


def test_a_folder_without_tables_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no CSV file"):
        read_tables(tmp_path)
    with pytest.raises(ConfigError, match="is not there: name a folder"):
        read_tables(tmp_path / "none")


def test_what_is_missed_is_told(capsys: pytest.CaptureFixture[str]):
    shown = report(
        [Check("t.csv", "a", 0.5, 0.52, 0.01, "asked for"), Check("t.csv", "b", 0.5, 0.505, 0.01, "")], ["n"]
    )
    assert "MISSED" in shown.splitlines()[1]
    assert "MISSED" not in shown.splitlines()[2]
    assert "1 of 2 numbers are met" in shown
    assert shown.endswith("note: n")


def test_a_table_keeps_the_order_of_its_file():
    table = Table("t", "k", [{"config": "b"}, {"config": "a"}, {"config": "b"}])
    assert table.values("config") == ["b", "a"]
