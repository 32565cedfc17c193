"""From tokens to a reply: text, boxes in pixels, drawings."""
