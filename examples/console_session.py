"""What you would type in napari's console, without a window: paint, train, predict, save, continue.

Run it in an empty folder: ``python console_session.py``. In napari's console ``session`` is there already.
"""

from napari_sparseseg import Session
from napari_sparseseg.samples import sample_slide

with Session(["tumour glands", "stroma", "background"]) as session:
    slide = session.open(sample_slide())
    print(f"{slide.shape[1]} x {slide.shape[0]} px, {slide.mpp} um per px")

    # (y, x) in level-0 pixels, radius of the brush, class id
    session.annotations.paint([(1100, 2250), (1400, 2550)], 30, 1)
    session.annotations.paint([(1750, 1500), (1950, 1850)], 30, 1)
    session.annotations.paint([(700, 1000), (650, 1500)], 30, 2)
    session.annotations.paint([(2900, 2350), (3200, 2500)], 30, 2)
    session.annotations.paint([(60, 100), (60, 900)], 30, 3)
    session.annotations.paint([(3900, 3700), (3900, 4000)], 30, 3)
    print("labelled pixels per class:", session.annotations.counts())

    # A minute is better; five seconds give the instant head, refitted to all strokes, and a few steps of the decoder.
    session.train(seconds=5, wait=True)
    print(session.status)

    labels, probabilities = session.predict((1024, 1024, 1024, 1024))
    share = {c.name: float((labels == c.id).mean()) for c in session.classes}
    print("share of the box:", share)

    # Correct it where it is wrong; every stroke is learned at the next training.
    session.annotations.paint([(2000, 2100), (2050, 2200)], 20, 2)
    session.annotations.undo()

    session.save("study.sparseseg")

# Another day: slides, strokes, settings and model are back.
with Session.load("study.sparseseg") as session:
    print(session.slide, session.annotations.counts(), session.model)
