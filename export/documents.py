"""What a bundle says of itself to people (a model card) and to scanners (a CycloneDX bill of materials)."""

from uuid import NAMESPACE_URL, uuid5

from export.lock import Pin, render_pins
from export.manifest import Manifest, Portability

CARD, SBOM = "MODEL_CARD.md", "sbom.cdx.json"


def sbom(name: str, sha256: str, pins: tuple[Pin, ...], precision: str) -> str:
    """CycloneDX 1.6 as JSON: the model and the packages that run it. The same bytes for the same contents."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    model = Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=sha256,
        version=sha256[:12],
        description=f"image classifier, {precision}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )
    packages = [
        Component(
            name=pin.name,
            version=pin.version,
            type=ComponentType.LIBRARY,
            bom_ref=f"{pin.name}=={pin.version}",
            purl=PackageURL("pypi", None, pin.name, pin.version),
        )
        for pin in pins
    ]
    bom = Bom(components=packages, serial_number=uuid5(NAMESPACE_URL, sha256 + render_pins(pins)))
    bom.metadata.component = model
    bom.metadata.timestamp = None  # type: ignore[assignment]  # optional in the format; it would change the bytes
    bom.register_dependency(model, packages)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def _attempts(count: int) -> str:
    return "the first attempt at this limit" if count == 1 else f"attempt {count} at this limit, all of which share 1 %"


def _portability(found: Portability) -> str:
    if found.images == 0:
        return f"Not tried on an older CPU: {found.how}."
    return (
        f"On {found.images} images with newer instructions switched off ({found.how}): "
        f"{found.agreement:.1%} of the labels agree, macro F1 changes by {found.f1_change:+.4f}, "
        f"a logit differs by {found.max_diff:.2g} at most."
    )


def model_card(manifest: Manifest) -> str:
    """Markdown, from the manifest alone."""
    evidence, model, preprocess = manifest.evidence, manifest.model, manifest.preprocess
    latency, quality, host = evidence.latency, evidence.quality, evidence.host
    chosen = (
        "Epoch, candidate and precision were chosen on the same images, which flatters these figures."
        if quality.selected_on
        else "Nothing was chosen on these images."
    )
    needs = "".join(f"- {need.what}: one of {', '.join(need.any_of)}\n" for need in manifest.relies_on)
    rows = "".join(f"| {name} | {f1:.4f} |\n" for name, f1 in quality.f1_per_class.items())
    packages = ", ".join(f"{k} {v}" for k, v in host.versions.items())
    return f"""# Image classifier, {len(manifest.classes)} classes

`python predict.py PATH...` labels images; `python predict.py --check` verifies this folder. Requirements:
`python -m pip install --require-hashes --only-binary :all: -r requirements.txt`.

| | |
| --- | --- |
| classes | {", ".join(manifest.classes)} |
| input | {preprocess.size} px square, {preprocess.fit}, {preprocess.filter}; RGB, turned by EXIF |
| file | {model.path}, {model.runtime}, {model.precision}, {evidence.params:,} parameters, \
{evidence.macs / 1e6:.1f} MMAC |
| sha256 | {model.sha256} |

## Quality

Macro F1 {quality.f1_macro:.4f} ({quality.f1_low:.4f} to {quality.f1_high:.4f}: 95 %, other images of the same
kind), accuracy {quality.accuracy:.4f} on {quality.split}. {chosen}

| class | F1 |
| --- | --- |
{rows}
## Time

In a typical (the median) fresh process on the host below, one inference (batch 1, threads: {model.threads}) takes at
most {latency.p90_upper_ms:.3f} ms nine times in ten (p90 {latency.p90_ms:.3f}; limit {latency.limit_ms:g} ms;
99 % confidence, {latency.processes} processes, {_attempts(latency.attempts)}).
It says nothing of other hosts, or of reading and decoding files.

Host: {host.cpu}, {host.cores} cores, {host.system}, {packages}.

## What the CPU must have

{needs or "Nothing beyond what the packages themselves need." + chr(10)}
{_portability(evidence.portability)}

## What it is not for

It knows its classes only: an image of anything else gets one of their labels, with a score that is no probability of
being right. It was trained and measured on the photos of one data set; on others, measure again.
"""
