"""Lists of nodes as Slurm writes them; what `scontrol show hostnames` gives for each was looked up once."""

import pytest

from train.host_list import hosts_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],gpu-a[1-2]", ["n1", "n2", "n3", "n07", "gpu-a1", "gpu-a2"]),
        ("rack[1-2]node[08-10]", [f"rack{r}node{n}" for r in (1, 2) for n in ("08", "09", "10")]),
        ("a,b-c,d.e", ["a", "b-c", "d.e"]),
    ],
)
def test_lists_are_expanded_as_slurm_does(text: str, names: list[str]):
    assert hosts_of(text) == names


@pytest.mark.parametrize("text", ["n[1-", "n]", "n[a-b]", "a,,b", "n[]"])
def test_what_slurm_would_not_write_is_refused(text: str):
    with pytest.raises(ValueError, match="nodes"):
        hosts_of(text)
