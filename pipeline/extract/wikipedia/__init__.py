"""MediaWiki dumps -> pages -> paragraphs of running text."""
