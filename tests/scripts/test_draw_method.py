from xml.etree import ElementTree

from scripts.draw_method import HEIGHT, OUT, WIDTH, draw


def test_the_drawing_in_docs_is_what_the_script_draws():
    assert OUT.read_text() == draw()


def test_every_box_and_arrow_lies_within_the_drawing():
    shapes = list(ElementTree.fromstring(draw()).iter())
    boxes = [shape for shape in shapes if shape.tag.endswith("rect")]
    assert len(boxes) > 20
    for box in boxes:
        left, top, width, height = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 < left < left + width < WIDTH
        assert 0 < top < top + height < HEIGHT
    for line in (shape for shape in shapes if shape.tag.endswith("polyline")):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 < x < WIDTH
            assert 0 < y < HEIGHT
