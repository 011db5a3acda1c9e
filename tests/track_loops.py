"""The life cycle of tracks as plain loops over a list of instances: the reference for the graph's masked rows."""

import dataclasses

import numpy as np

from config import UniADConfig


@dataclasses.dataclass
class Track:
    """One instance."""

    obj: int = -1
    asleep: int = 0
    period: int = 0
    stored: int = 0
    box: np.ndarray | None = None
    ref: np.ndarray | None = None
    score: float = -1.0


class Loops:
    """The original's life cycle as it is written there: a list of instances, one after another."""

    def __init__(self, config: UniADConfig):
        self.config, self.carried, self.next_id = config, [], 0

    def frame(self, scores: np.ndarray, boxes: np.ndarray, refs: np.ndarray, has_prev: bool) -> dict:
        """scores, boxes, refs: one row per fresh query, then one per carried track."""
        c = self.config
        tracks = [Track() for _ in range(c.num_fresh)] + (self.carried if has_prev else [])
        tracks[c.num_query].obj = -2
        for track, score, box, ref in zip(tracks, scores, boxes, refs):
            track.score, track.box, track.ref = score, box, ref
            if score >= np.float32(c.score_thresh):
                track.asleep = 0
        for track in tracks:
            if track.obj == -1 and track.score >= np.float32(c.score_thresh):
                track.obj, self.next_id = self.next_id, self.next_id + 1
            elif track.obj >= 0 and track.score < np.float32(c.filter_score_thresh):
                track.asleep += 1
                if track.asleep >= c.miss_tolerance:
                    track.obj = -1
        awake = [t for t in tracks if t.obj >= 0 and t.score >= np.float32(c.filter_score_thresh)]
        live = [t for t in tracks if t.obj >= 0]
        strongest = {id(t) for t in sorted(live, key=lambda t: -t.score)[: c.max_tracks]}
        self.carried = [t for t in live if id(t) in strongest]
        for t in self.carried:
            due = t.period == 0
            t.period = 3 if due else t.period - 1
            t.stored = min(t.stored + due, c.memory_bank_len)
        return {
            "active": self.ranked(awake, min(c.max_tracks, c.max_num)),
            "detections": self.ranked(tracks, c.max_num),
            "dropped": len(live) - len(self.carried),
        }

    def ranked(self, tracks: list[Track], count: int) -> list[Track | None]:
        """The best by score; None where the centre is out of range."""
        best = sorted(tracks, key=lambda t: -t.score)[:count]
        low, high = np.float32(self.config.post_center_range[:3]), np.float32(self.config.post_center_range[3:])
        centre = [t.box[[0, 1, 4]] for t in best]
        return [t if (c >= low).all() and (c <= high).all() else None for t, c in zip(best, centre)]
