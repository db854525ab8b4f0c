"""Scores of labelled points by plain loops, for the tests of open-vocabulary segmentation."""

import numpy as np


def by_loops(pred, target, classes, ignore=-1):
    """mIoU and mAcc over `classes` that have a labelled point; -1 in pred is wrong."""
    ious, accs = [], []
    for k in classes:
        hit = miss = extra = 0
        for p, t in zip(pred, target, strict=True):
            if t == ignore:
                continue
            hit += p == k and t == k
            miss += t == k and p != k
            extra += p == k and t != k
        if hit + miss:
            ious.append(hit / (hit + miss + extra))
            accs.append(hit / (hit + miss))
    return float(np.mean(ious)), float(np.mean(accs))
