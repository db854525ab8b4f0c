"""A page in the browser where a scene is asked: `command` is the way in, `scene_view` what is shown, `page` the widgets."""
