"""True and predicted values -> scores, each with its 95 % confidence interval.

Scores are fractions, not percentages. Intervals are Wilson's for proportions, Fisher's z for correlations, and a seeded
bootstrap of the examples for all other scores. An undefined score, such as the correlation of a constant, is 0 and its
interval is the whole range of the score: no NaN reaches JSON.
"""
