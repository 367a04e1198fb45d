"""Any sequence of what can be done with a session, with kill -9 anywhere: what was answered is there afterwards.

Two sessions do the same. One is killed where the other is closed, between two acts or within one; both go on with what
is on disk. After every act and every restart both say the same of slides, roles, resolutions, strokes, labels, classes,
settings and the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from napari_sparseseg import Session
from napari_sparseseg.errors import ProjectError
from tests.faults import report
from tests.faults.acts import SIDE, SLIDES, User, state
from tests.helpers.data import two_textures, write_slide

NAMES = st.sampled_from(["stripes", "dots", "fibre", "Blut, alt"])
ROWS = st.integers(5, SIDE - 5)
OTHERS = st.one_of(
    st.tuples(st.just("session history"), st.sampled_from(["undo", "redo"])),
    st.tuples(st.just("change strokes"), st.integers(0, 9), st.integers(0, 2)),
    st.tuples(st.just("change region"), ROWS),
    st.tuples(st.just("import"), st.sampled_from(["stripes", "vessel"]), st.sampled_from(["over", "under", "replace"])),
    st.tuples(st.sampled_from(["preset", "model"]), st.booleans()),
    st.tuples(st.sampled_from(["other annotations", "accept"]), ROWS),
    st.tuples(st.just("runs"), st.sampled_from(["undo", "list"])),
    st.tuples(st.just("go to run"), st.integers(0, 2)),
    st.tuples(st.sampled_from(["forget history", "exchange", "snap", "superpixels", "take back", "predict", "no mpp"])),
)


class Killed(RuleBasedStateMachine):
    """`user` is killed, `calm` is closed."""

    def __init__(self):
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        for k, name in enumerate(SLIDES):
            write_slide(self.place / name, two_textures(SIDE, k))
        (self.place / "killed").mkdir()
        (self.place / "calm").mkdir()
        self.user = User(self.place / "killed", self.place / "home killed")
        self.calm = User(self.place / "calm", self.place / "home calm")
        self.saved = self.renamed = 0
        self.row = report.row("any act of a session, kill -9 between two or within one")

    def act(self, *act):
        for session in (self.user, self.calm):
            session.do(act)
        assert (self.user.refusal is None) == (self.calm.refusal is None), (self.user.refusal, self.calm.refusal)
        assert self.user.state == self.calm.state

    def restart(self, *possible):
        """After a kill: the same as before it, or, where it came within an act, as after that act."""
        if self.user.project is not None and not (self.user.project / "project.json").exists():
            self.user.project = self.user.folder / f"p{self.saved}.sparseseg"  # the save under way was complete
        self.user.start()
        self.row.rounds += 1
        self.row.promised += 1
        held = self.user.state in possible
        self.row.lost += not held
        assert held, f"after the kill:\n{self.user.state}\nexpected one of\n" + "\n".join(map(str, possible))

    @property
    def has_files(self):
        return self.calm.project is not None

    @initialize(k=st.integers(0, 2), y=ROWS)
    def begin(self, k, y):
        self.act("open", k)
        self.act("paint", y, 1)

    @rule(k=st.integers(0, 2))
    def open(self, k):
        self.act("open", k)

    @rule(k=st.integers(0, 2))
    def activate(self, k):
        self.act("activate", k)

    @rule()
    def remove(self):
        self.act("remove")

    @rule(role=st.sampled_from(["train", "held-out", "predict"]))
    def role(self, role):
        self.act("role", role)

    @rule(mpp=st.sampled_from([0.25, (0.5, 0.52), 2.0]))
    def mpp(self, mpp):
        self.act("mpp", mpp)

    @rule(y=ROWS, label=st.integers(1, 2))
    def paint(self, y, label):
        self.act("paint", y, label)

    @rule(y=ROWS)
    def erase(self, y):
        self.act("erase", y)

    @rule(y=ROWS, label=st.integers(1, 2), dense=st.booleans())
    def polygon(self, y, label, dense):
        self.act("polygon", y, label, dense)

    @rule(act=st.sampled_from(["undo", "redo"]))
    def history(self, act):
        self.act("history", act)

    @rule(names=st.lists(NAMES, min_size=2, max_size=4, unique=True))
    def classes(self, names):
        self.act("classes", names)

    @rule(patch=st.sampled_from([64, 96]), rate=st.sampled_from([1e-3, 2e-3]))
    def configure(self, patch, rate):
        self.act("configure", patch, rate)

    @rule()
    def save_as(self):
        self.saved += 1
        self.act("save", f"p{self.saved}")

    @precondition(lambda self: self.saved)
    @rule()
    def save(self):
        self.act("save", "")

    @precondition(lambda self: self.saved > 1)
    @rule(k=st.integers(1, 9), exists=st.sampled_from(["refuse", "replace", "merge"]))
    def save_over(self, k, exists):
        self.act("save", f"p{1 + k % self.saved}", exists)

    @precondition(lambda self: self.saved)
    @rule()
    def rename_project(self):
        self.renamed += 1
        self.act("rename project", f"r{self.renamed}.sparseseg")

    @precondition(lambda self: self.saved)
    @rule(strokes=st.integers(0, 3))
    def away_and_back(self, strokes):
        self.act("away and back", strokes)

    @rule(act=OTHERS)
    def another_act(self, act):
        self.act(*act)

    @rule()
    def train(self):
        self.act("train")

    def close_and_open(self):
        """The calm way; whether there is anything to go on with: the folder of unsaved work goes where it is empty."""
        self.calm.close()
        if (self.calm.project / "project.json").exists():
            self.calm.start()
            return True
        assert not self.saved
        assert not any(strokes for _, _, strokes, *_ in self.calm.state["slides"].values())
        self.user.project = self.calm.project = None
        self.user.start()
        self.calm.start()
        return False

    @precondition(lambda self: self.has_files and self.calm.state["slides"])
    @rule()
    def another_program_looks(self):
        """It sees what there is, may not write, and takes nothing away."""
        before = self.user.state
        with Session.load(self.user.project) as other:
            assert "open in another window" in other.status.message
            assert state(other) == before
            other.annotations.paint([(50, 5), (50, 90)], 9, 2)
            with pytest.raises(ProjectError, match="another name"):
                other.save(other.project)

    @precondition(lambda self: self.has_files)
    @rule()
    def kill(self):
        self.user.kill()
        if self.close_and_open():
            self.restart(self.calm.state)

    @precondition(lambda self: self.has_files)
    @rule(data=st.data(), y=ROWS, after=st.floats(0, 0.03))
    def kill_within(self, data, y, after):
        acts = [("paint", y, 1), ("polygon", y, 2, True), ("erase", y), ("mpp", 0.7), ("role", "predict"), ("train",)]
        acts += [("save", f"p{self.saved + 1}"), ("classes", ["stripes", "dots", "new"])]
        act = data.draw(st.sampled_from(acts))
        self.saved += act[0] == "save"
        self.user.begin(act)
        time.sleep(after)
        self.user.kill()
        if not self.close_and_open():
            return
        before = self.calm.state
        self.calm.do(act)
        if self.close_and_open():
            self.restart(before, self.calm.state)
            self.even_out(act)

    def even_out(self, act):
        """Both have done the act that one of them was killed in."""
        if self.user.state != self.calm.state:
            self.row.cut += 1
            self.user.do(act)
            self.user.kill()
            self.user.start()
        assert self.user.state == self.calm.state

    def teardown(self):
        try:
            if self.has_files and self.user.state == self.calm.state:
                self.kill()
        finally:
            self.user.kill()
            self.calm.kill()
            shutil.rmtree(self.place)


PHASES = [Phase.explicit, Phase.generate]  # when it was killed is not the same twice: nothing can be made smaller
pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.name == "nt", reason="children are forked and killed by signals"),
]


class TestKilled(Killed.TestCase):
    settings = settings(max_examples=4, stateful_step_count=10, deadline=None, phases=PHASES)


@pytest.mark.slow
@pytest.mark.timeout(1500)
class TestKilledOften(Killed.TestCase):
    settings = settings(max_examples=80, stateful_step_count=25, deadline=None, phases=PHASES)


def test_settings_changed_while_no_slide_is_open(tmp_path):
    """They are in the project with the act that changed them, although nothing else was written since it was opened."""
    write_slide(tmp_path / SLIDES[0], two_textures(SIDE))
    (tmp_path / "work").mkdir()
    user = User(tmp_path / "work", tmp_path / "home")
    for act in (("open", 0), ("paint", 40, 1), ("save", "p"), ("remove",)):
        user.do(act)
    user.kill()
    user.start()
    user.do(("classes", ["stripes", "dots", "fibre"]))
    user.do(("configure", 96, 2e-3))
    before = user.state
    user.kill()
    user.start()
    assert user.state == before
    user.close()
