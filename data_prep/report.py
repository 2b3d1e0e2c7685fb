"""The closing table of a data preparation, for people; programs read manifest.json."""

from collections.abc import Mapping

from data_prep.manifest import Manifest


def table(manifest: Manifest, out: str) -> str:
    n_inputs = sum(entry.inputs for entry in manifest.sources)
    rows = [
        ("documents", f"{manifest.documents_in:,} in {n_inputs:,} inputs; left out: {_counts(manifest.removed)}"),
        ("train", _split(manifest, "train")),
        ("val", _split(manifest, "val") if manifest.tokens("val") else "nothing held out (val_fraction=0)"),
        ("vocabulary", f"{manifest.vocab_size:,} pieces, stored as {manifest.dtype}"),
        ("to beat", _baselines(manifest)),
        ("lies in", f"{out} ({len(manifest.shards)} shards, fingerprint {manifest.fingerprint[:16]})"),
    ]
    if len(manifest.sources) > 1:
        rows[1:1] = [
            (f"  {entry.name}"[:12], f"{entry.documents_in:,} documents; left out: {_counts(entry.removed)}")
            for entry in manifest.sources
        ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _counts(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in removed.items()) or "none"


def _split(manifest: Manifest, split: str) -> str:
    tokens, n_bytes, documents = manifest.tokens(split), manifest.text_bytes(split), manifest.documents(split)
    per_token = n_bytes / max(1, tokens - documents)  # end-of-text ids stand for no text
    size = f"{n_bytes / 1e6:,.2f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.1f} kB"
    return f"{tokens:,} tokens, {documents:,} documents, {size} of text, {per_token:.2f} bytes per token"


def _baselines(manifest: Manifest) -> str:
    figures = [f"{name.removesuffix('_bits_per_byte')} {value:.3f}" for name, value in manifest.baselines.items()]
    return ", ".join(figures) + " bits per byte on the held-out text" if figures else "no held-out text to measure on"
