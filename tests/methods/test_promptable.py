"""Promptable networks: what they are shown, how answers come back and vote, and what is said without weights."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medssl.errors import ConfigError, DeviceError
from medssl.methods.promptable import AT_ONCE, SAM2, StandIn, answers, load_sam2, triples, vote
from medssl.parts.prompts import make_prompts

SHAPE = (10, 9, 7)


def labels():
    label = torch.zeros(2, *SHAPE, dtype=torch.long)
    label[0, 2:6, 1:7] = 1
    label[1, 4:9, 3:8, 1:] = 2
    label[1, 0:3, 0:4, 2:5] = 1
    return label


def images():
    torch.manual_seed(0)
    return torch.randn(2, *SHAPE) + 3 * labels()


def one_hot():
    return F.one_hot(labels(), 3).movedim(-1, 1).float()


def prompts(every=1):
    probs, image = one_hot().numpy(), images().numpy()
    return [one for n in range(2) for one in make_prompts(probs[n], image[n], volume=n, every=every)]


class Predictor:
    """SAM 2's image predictor as its package has it, which here knows one object: what is bright."""

    def set_image_batch(self, image_list):
        assert all(isinstance(image, np.ndarray) and image.dtype == np.uint8 for image in image_list)
        self.images = image_list

    def predict_batch(
        self, point_coords_batch, point_labels_batch, box_batch, mask_input_batch=None, multimask_output=True,
        return_logits=False, normalize_coords=True,
    ):  # fmt: skip
        assert return_logits
        assert normalize_coords
        assert not multimask_output
        assert len(self.images) == len(point_coords_batch) == len(point_labels_batch) == len(box_batch)
        self.told = list(zip(point_coords_batch, point_labels_batch, box_batch, strict=True))
        masks = []
        for image, (points, signs, boxes) in zip(self.images, self.told, strict=True):
            assert points.shape == (*signs.shape, 2)
            assert boxes.shape == (len(points), 4)
            drawn = np.full((len(boxes), 1, *image.shape[:2]), -5, np.float32)
            for mask, (left, top, right, bottom) in zip(drawn, boxes.astype(int), strict=True):
                mask[0, top : bottom + 1, left : right + 1] = image[top : bottom + 1, left : right + 1, 1] / 25 - 5
            masks.append(drawn[0] if len(drawn) == 1 else drawn)  # as the package drops an axis of one prompt
        return masks, None, None


def test_slices_come_between_their_neighbours():
    shown = triples(images(), [(1, 0), (0, 3), (1, 6)])
    assert shown.shape == (3, 3, *SHAPE[:2])
    for slices, (volume, near) in zip(shown, [(1, (0, 0, 1)), (0, (2, 3, 4)), (1, (5, 6, 6))], strict=True):
        assert torch.equal(slices, images()[volume][..., list(near)].movedim(-1, 0))


@pytest.mark.parametrize("backbone", [StandIn(), SAM2(Predictor())], ids=["stand_in", "sam2"])
def test_answers_are_those_of_each_prompt_by_itself_whatever_the_order(backbone):
    asked = prompts()[::-1]
    assert len({(one.volume, one.plane) for one in asked}) > AT_ONCE
    together = answers(backbone, images(), asked)
    assert together.shape == (len(asked), *SHAPE[:2])
    alone = torch.cat([answers(backbone, images(), [one]) for one in asked])
    torch.testing.assert_close(together, alone)


def test_sam2_is_told_x_before_y_and_shown_grey_levels():
    predictor, (one, *_) = Predictor(), prompts()
    answers(SAM2(predictor), images(), [one])
    ((points, signs, boxes),) = predictor.told
    rows, columns = one.box
    assert boxes.tolist() == [[columns.start, rows.start, columns.stop - 1, rows.stop - 1]]
    assert points[0].tolist() == [[column, row] for row, column in one.points.tolist()]
    assert signs[0].tolist() == one.signs.tolist()
    (shown,) = predictor.images
    assert shown.shape == (*SHAPE[:2], 3)
    assert shown.min() == 0
    assert shown.max() == 255
    middle = images()[one.volume, ..., one.plane].numpy()
    assert np.corrcoef(middle.ravel(), shown[..., 1].ravel())[0, 1] > 0.99


def test_bright_boxes_are_found_through_sam2s_interface():
    asked = prompts()
    found = answers(SAM2(Predictor()), images(), asked) > 0
    own = torch.stack([torch.from_numpy(one.mask) for one in asked])
    assert (found == own).float().mean() > 0.9
    assert found[own].float().mean() > 0.8


def test_a_stand_in_follows_its_prompts_and_learns_without_them():
    torch.manual_seed(0)
    net, asked = StandIn(), prompts()
    with_point = answers(net, images(), asked[:1])
    asked[0].points[0] = asked[0].points[0] + 1
    assert not torch.allclose(answers(net, images(), asked[:1]), with_point)
    none = answers(net, images(), [])
    assert none.shape == (0, *SHAPE[:2])
    none.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())


class TestVote:
    probs = torch.full((2, 3, *SHAPE), 0.1).index_fill_(1, torch.tensor([1]), 0.8)

    def test_is_mixed_in_within_the_box_and_sums_to_one(self):
        (one, *_) = prompts()
        answer = torch.from_numpy(one.mask).float()[None] * 0.6 + 0.2
        voted, count = vote(self.probs, [one], answer, share=0.5, overlap=0.5)
        torch.testing.assert_close(voted.sum(1), torch.ones(2, *SHAPE))
        place = (one.volume, slice(None), *one.box, one.plane)
        expected = self.probs.clone()
        heard = answer[0][one.box]
        classes = torch.stack([(1 - heard) / 2, heard, (1 - heard) / 2])  # the others share the rest as before
        expected[place] = (expected[place] + 0.5 * classes) / 1.5
        torch.testing.assert_close(voted, expected, atol=1e-5, rtol=0)
        assert count == 1

    def test_never_outvotes_a_student_that_is_sure(self):
        asked = prompts()
        against = [(~torch.from_numpy(one.mask)).float() for one in asked]
        sure = one_hot() * 0.94 + 0.02
        voted, _ = vote(sure, asked, torch.stack(against), share=0.5, overlap=-1)
        assert torch.equal(voted.argmax(1), labels())
        assert (voted.amax(1) < sure.amax(1)).any()

    def test_is_not_heard_where_it_hardly_overlaps(self):
        asked = prompts()
        wrong = torch.stack([~torch.from_numpy(one.mask) for one in asked]).float()
        voted, count = vote(self.probs, asked, wrong, share=0.5, overlap=0.5)
        assert count == 0
        torch.testing.assert_close(voted, self.probs)

    def test_a_certain_student_gives_no_undefined_numbers(self):
        asked = prompts()
        half = torch.stack([torch.from_numpy(one.mask) for one in asked]).float() * 0.6
        voted, count = vote(one_hot(), asked, half, share=0.5, overlap=0.5)
        assert count == len(asked)
        torch.testing.assert_close(voted.sum(1), torch.ones(2, *SHAPE))


class TestLoading:
    @pytest.mark.parametrize("place", [None, "weights.pt"])
    def test_absent_weights_say_what_to_download_and_where_it_goes(self, tmp_path, place):
        with pytest.raises(ConfigError, match=r"method\.checkpoint") as error:
            load_sam2(place and tmp_path / place, "any", torch.device("cpu"))
        said = str(error.value)
        assert place is None or str(tmp_path / place) in said
        assert "pip install git+https://github.com/facebookresearch/sam2.git" in said
        assert "sam2.1_hiera_small.pt" in said
        assert "--set method.checkpoint=FILE" in said

    def test_an_absent_package_says_how_to_install_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "sam2", None)  # as if it were not installed
        monkeypatch.delitem(sys.modules, "sam2.build_sam", raising=False)
        (tmp_path / "weights.pt").write_bytes(b"")
        with pytest.raises(DeviceError, match=r"pip install git\+https"):
            load_sam2(tmp_path / "weights.pt", "any", torch.device("cpu"))

    def test_a_wrong_file_is_named(self, tmp_path):
        pytest.importorskip("sam2", reason="the package sam2 is not installed")
        (tmp_path / "weights.pt").write_text("no weights")
        with pytest.raises(ConfigError, match=r"weights\.pt: cannot be loaded as weights of method\.architecture"):
            load_sam2(tmp_path / "weights.pt", "configs/sam2.1/sam2.1_hiera_t.yaml", torch.device("cpu"))

    @pytest.mark.slow
    def test_the_package_answers_through_our_interface(self, tmp_path):
        """With random weights, which say nothing about its masks."""
        build = pytest.importorskip("sam2.build_sam", reason="the package sam2 is not installed")
        smallest = "configs/sam2.1/sam2.1_hiera_t.yaml"
        random = build.build_sam2(smallest, None, device="cpu")
        torch.save({"model": random.state_dict()}, tmp_path / "weights.pt")
        backbone, asked = load_sam2(tmp_path / "weights.pt", smallest, torch.device("cpu")), prompts(every=4)
        together = answers(backbone, images(), asked)
        assert together.shape == (len(asked), *SHAPE[:2])
        assert together.isfinite().all()
        torch.testing.assert_close(together[:1], answers(backbone, images(), asked[:1]), atol=1e-4, rtol=1e-4)
