"""QuPath projects in a session: their slides and annotations opened, results put where QuPath's script finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from napari_sparseseg.errors import PredictionError, ProjectError, SparseSegError
from napari_sparseseg.io.qupath_classes import read_classes
from napari_sparseseg.io.qupath_project import QuPathProject, read_project
from napari_sparseseg.slides import open_slide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from pathlib import Path

    from napari_sparseseg.session.session import Session

__all__ = ["QuPathProject", "open_qupath", "read_classes", "read_project", "send_results"]


def open_qupath(session: Session, project: QuPathProject) -> tuple[str, ...]:
    """Open the slides of a QuPath project in a session, with its classes, and the annotations that were exported.

    Parameters
    ----------
    session
        Without labels yet: it gets QuPath's class table.
    project
        From `read_project`.

    Returns
    -------
    What was left out, one sentence each.

    Raises
    ------
    ProjectError
        Where no slide can be opened.
    """
    if project.classes:
        session.classes = [c for c in project.classes if not c.name.endswith("*")] or project.classes
    left_out = []
    for image in project.images:
        if image.path is None:
            left_out.append(f"{image.name}: {image.problem}.")
            continue
        try:
            session.open(image.path)
            if (file := project.annotations_of(image)).exists():
                session.import_annotations(file)
        except SparseSegError as error:
            left_out.append(f"{image.name}: {error}")
    if not session.slides:
        raise ProjectError(f"no slide of {project.folder} can be opened. {' '.join(left_out)}".strip())
    return tuple(left_out)


def send_results(
    session: Session,
    project: QuPathProject,
    results: Sequence[str | PathLike[str]],
    *,
    min_area_um2: float = 100.0,
    kind: Literal["annotation", "detection"] = "annotation",
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write the objects of results, measured, where QuPath's import script finds them; gives the files by image.

    Parameters
    ----------
    session
        Measures them.
    project
        From `read_project`.
    results
        Label images; each is matched to its slide by the fingerprint.
    min_area_um2
        Smaller objects are left out.
    kind
        What the objects are in QuPath.
    overwrite
        Replace results that were sent before and not imported yet.

    Raises
    ------
    PredictionError
        Where a result belongs to no slide of the project, or was sent already; nothing is written then.
    """
    from napari_sparseseg.io.results import record_of

    wanted = {str(record_of(path).get("slide", "")): path for path in results}
    if len(wanted) < len(results):
        raise PredictionError("two of the results are of the same slide, or do not say of which; send one for each.")
    matched = {}
    for image in project.images:
        if image.path is None:
            continue
        with open_slide(image.path) as slide:
            if slide.fingerprint in wanted:
                matched[image] = (wanted.pop(slide.fingerprint), image.path)
    if wanted:
        raise PredictionError(f"{next(iter(wanted.values()))} was made of no slide of {project.folder}.")
    taken = next((project.results_of(image) for image in matched if project.results_of(image).exists()), None)
    if taken is not None and not overwrite:
        raise PredictionError(f"{taken} exists; run the import script in QuPath, or ask to overwrite it.")
    project.write_scripts()
    written = {}
    for image, (path, slide_path) in matched.items():
        target = project.results_of(image)
        session.results.measure_objects(
            path, target, slide=slide_path, min_area_um2=min_area_um2, kind=kind, overwrite=overwrite
        )
        written[image.name] = target
    return written
