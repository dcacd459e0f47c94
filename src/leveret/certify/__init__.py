"""The verb `certify`: do these forms of a model give the same answer, and what does its card say?"""
