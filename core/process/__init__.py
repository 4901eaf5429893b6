"""One child process: forked from a warm parent, confined, ended for certain.

this process ── asks
  zygote     imported torch once, and runs nothing that anybody edited
    warden   outlives its child, so that nothing that it started stays behind
      child  confines itself, proves it, and runs one function
"""
