"""The loop with Label Studio (1.23 or newer) as the page on which people label.

    server.py   what of its REST interface is used, with either kind of token
    view.py     what it shows: the labelling view, tasks, and what an annotation there says here
    record.py   what the project's file knows of it: which project there is ours, whose word it took
    webhook.py  an address on which it can say that something has happened
    loop.py     the loop: push a batch, take answers, train, choose the next

Each side may stop at any moment, by kill -9 as well, and nothing is done twice or lost. What was
pushed is not written down here but read there: a task carries the id of its item, and before each
push all tasks are read; if one was made twice after all, by a server that was slow, the second is
deleted. What was taken is made to agree with what stands there, in one transaction.
"""
